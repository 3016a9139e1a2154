"""How well student code can be shut in, from the best to the worst; each result says which it was."""

LEVELS = {
    "bubblewrap": "no network, own files and processes, a read-only system without the course's answers",
    "landlock and namespaces": "no network, own processes; it reads Python's files alone and writes a private folder",
    "landlock": "no network, no signals; it reads Python's files alone and writes a private folder",
    "process": "resource limits only: the answers, the network and other files are within reach",
}
WEAK = "process"  # what must be warned of
