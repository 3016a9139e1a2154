// Draws the recorded numbers of a batch, one card each, against the parameter that the reader chooses.
// The page holds the runs column by column (report.py, `_data`); a mean, a band and a point for each run are made here.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = page.template.layout.colorway;
  const DASHES = ["solid", "dash", "dot", "dashdot"]; // where there are more values than colours
  const MOST_COLUMNS = 4; // panels in a row
  const MOST_TICKS = 14;

  document.querySelectorAll("section.lesson").forEach((section) => {
    const lesson = page.lessons[section.dataset.lesson];
    const roles = [...section.querySelectorAll("select[data-role]")];
    const filters = [...section.querySelectorAll("select[data-only]")];
    const cards = [...section.querySelectorAll(".plot-card")];
    const old = new Map(roles.map((select) => [select, select.value]));

    // A parameter has one role: who takes it leaves their own behind.
    function take(select) {
      const rival = roles.find((other) => other !== select && other.value !== "" && other.value === select.value);
      if (rival) {
        rival.value = old.get(select);
        const used = new Set(roles.map((role) => role.value));
        if (rival.dataset.role === "x" && rival.value === "")
          rival.value = lesson.parameters.map((p) => p.name).find((name) => !used.has(name)) ?? "";
        if (rival.dataset.role === "x" && rival.value === "") [rival.value, select.value] = [select.value, ""];
      }
      roles.forEach((role) => old.set(role, role.value));
    }

    function chosen() {
      const choice = { only: {} };
      roles.forEach((select) => (choice[select.dataset.role] = select.value));
      const used = new Set(Object.values(choice));
      filters.forEach((select) => {
        select.parentElement.hidden = used.has(select.dataset.only);
        if (!used.has(select.dataset.only) && select.value !== "") choice.only[select.dataset.only] = +select.value;
      });
      return choice;
    }

    function draw(card) {
      if (!card.open) return;
      const plot = card.querySelector(".plot");
      const { traces, layout } = figure(lesson, lesson.numbers[card.dataset.card], chosen());
      const first = !plot.data;
      plot.style.height = `${layout.height}px`; // plotly.js draws as high, and its box may stay lower
      const buttons = [["toImage", "resetScale2d"]]; // plotly's whole row would lie over the title
      Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, modeBarButtons: buttons });
      if (first)
        plot.on("plotly_click", ({ points: [point] }) => {
          if (point.customdata) window.open(point.customdata, "_blank");
        });
    }

    function drawAll() {
      const { panels } = chosen();
      section.querySelector(".cards").classList.toggle("wide", Boolean(panels));
      cards.forEach(draw);
    }

    roles.forEach((select) => select.addEventListener("change", () => (take(select), drawAll())));
    filters.forEach((select) => select.addEventListener("change", drawAll));
    cards.forEach((card) => card.addEventListener("toggle", () => draw(card)));
    section.querySelectorAll("button[data-x]").forEach((button) =>
      button.addEventListener("click", () => {
        const across = roles.find((select) => select.dataset.role === "x");
        across.value = button.dataset.x;
        take(across);
        const card = cards[button.dataset.card];
        card.open = true;
        drawAll();
        card.scrollIntoView({ behavior: "smooth", block: "center" });
      }),
    );
    drawAll();
  });

  function figure(lesson, number, choice) {
    const find = (name) => lesson.parameters.find((parameter) => parameter.name === name);
    const [across, colour, panels] = [find(choice.x), find(choice.colour), find(choice.panels)];
    const only = Object.entries(choice.only).map(([name, index]) => [find(name), index]);
    const runs = number.values
      .map((value, run) => run)
      .filter((run) => number.values[run] !== null && only.every(([parameter, index]) => parameter.at[run] === index));

    const shown = runs.length ? present(panels, runs) : [null];
    const columns = Math.min(shown.length, MOST_COLUMNS);
    const lines = Math.ceil(shown.length / columns);
    const layout = {
      template: page.template,
      title: { text: title(number, across, colour, panels) },
      height: lines > 1 ? 90 + 300 * lines : 400,
      margin: { t: panels ? 84 : 56 },
      showlegend: Boolean(colour),
      legend: { title: { text: colour?.name } },
      annotations: [],
      hovermode: "closest",
    };
    const traces = [];
    shown.forEach((panel, place) => {
      const axes = place === 0 ? "" : place + 1;
      const [column, line] = [place % columns, Math.floor(place / columns)];
      const [gapX, gapY] = [columns > 1 ? 0.05 : 0, lines > 1 ? 0.16 : 0];
      const wide = (1 - gapX * (columns - 1)) / columns;
      const high = (1 - gapY * (lines - 1)) / lines;
      const [left, top] = [column * (wide + gapX), 1 - line * (high + gapY)];
      layout[`xaxis${axes}`] = { ...axis(across), domain: [left, left + wide], anchor: `y${axes}` };
      // Autorange must be said: of three axes that match, beside x axes with a range, plotly.js leaves all at -1 to 4.
      layout[`yaxis${axes}`] = { domain: [top - high, top], anchor: `x${axes}`, autorange: true };
      if (column === 0) layout[`yaxis${axes}`].title = { text: number.name };
      if (place > 0) layout[`yaxis${axes}`].matches = "y";
      if (place > 0) layout[`xaxis${axes}`].matches = "x";
      if (panels && panel !== null)
        layout.annotations.push(note(`${panels.name} ${panels.labels[panel]}`, left + wide / 2, top, "bottom"));
      const here = runs.filter((run) => !panels || panels.at[run] === panel);
      present(colour, runs).forEach((which, order, { length }) => {
        const mine = here.filter((run) => !colour || colour.at[run] === which);
        const aside = across.scale === "names" ? (order - (length - 1) / 2) * Math.min(0.16, 0.7 / length) : 0;
        if (mine.length) traces.push(...group(lesson, number, across, aside, colour, which ?? 0, mine, axes));
      });
    });
    if (!runs.length) layout.annotations.push(note("no finite number among these runs", 0.5, 0.5, "middle"));
    nameOnce(traces);
    return { traces, layout };
  }

  function note(text, x, y, yanchor) {
    return { text: escape(text), x, y, yanchor, xref: "paper", yref: "paper", xanchor: "center", showarrow: false };
  }

  // The values of a parameter that occur in these runs; one nameless value if there is no parameter.
  function present(parameter, runs) {
    if (!parameter) return [null];
    return parameter.labels.map((_, index) => index).filter((index) => runs.some((run) => parameter.at[run] === index));
  }

  // Band from least to most, a line through the means, and a point for each run. Values without an order get neither
  // band nor line, and colours stand side by side.
  function group(lesson, number, across, aside, colour, which, runs, axes) {
    const paint = COLOURS[which % COLOURS.length];
    const ordered = across.scale !== "names";
    const steps = present(across, runs).map((index) => {
      const values = runs.filter((run) => across.at[run] === index).map((run) => number.values[run]);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const [low, high, n] = [Math.min(...values), Math.max(...values), values.length];
      return { x: across.places[index] + aside, index, mean, low, high, n };
    });
    const common = { xaxis: `x${axes}`, yaxis: `y${axes}`, legendgroup: String(which), showlegend: false };
    const name = colour ? escape(colour.labels[which]) : "mean";
    const traces = [];
    if (ordered && steps.length > 1 && steps.some((step) => step.n > 1)) {
      const back = [...steps].reverse();
      traces.push({
        ...common,
        x: [...steps, ...back].map((step) => step.x),
        y: [...steps.map((step) => step.high), ...back.map((step) => step.low)],
        ...{ mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: faint(paint), hoverinfo: "skip" },
      });
    }
    traces.push({
      ...common,
      x: runs.map((run) => across.places[across.at[run]] + aside),
      y: runs.map((run) => number.values[run]),
      text: runs.map((run) => `seed ${lesson.seeds[run]}`),
      customdata: runs.map((run) => lesson.paths[run]),
      ...{ mode: "markers", marker: { color: paint, size: 6, opacity: 0.55 } },
      hovertemplate: `${name}, %{text}: %{y:.4g}<br>click to open the notebook<extra></extra>`,
    });
    traces.push({
      ...common,
      ...{ name, x: steps.map((step) => step.x), y: steps.map((step) => step.mean) },
      text: steps.map((step) => `${across.name} ${across.labels[step.index]}: mean of ${step.n}`),
      mode: ordered ? "lines+markers" : "markers",
      line: { color: paint, dash: DASHES[Math.floor(which / COLOURS.length) % DASHES.length] },
      marker: ordered ? { color: paint, size: 7 } : { symbol: "line-ew", size: 9, line: { color: paint, width: 3 } },
      hovertemplate: "%{text}, %{y:.4g}<extra></extra>",
    });
    return traces;
  }

  // One entry in the legend for each colour, whichever panel it occurs in first.
  function nameOnce(traces) {
    const seen = new Set();
    traces
      .filter((trace) => trace.name !== undefined)
      .forEach((trace) => {
        trace.showlegend = !seen.has(trace.legendgroup);
        seen.add(trace.legendgroup);
      });
  }

  function axis(parameter) {
    const even = parameter.scale === "even";
    const made = { title: { text: parameter.name + (even ? " (even steps)" : "") } };
    if (parameter.scale === "log") made.type = "log";
    if (parameter.places.length <= MOST_TICKS || even || parameter.scale === "names")
      Object.assign(made, { tickmode: "array", tickvals: parameter.places, ticktext: parameter.labels.map(escape) });
    if (even || parameter.scale === "names") made.range = [-0.4, parameter.places.length - 0.6];
    return made;
  }

  function title(number, across, colour, panels) {
    const by = [colour, panels].filter(Boolean).map((parameter) => parameter.name);
    return `${number.name} against ${across.name}${by.length ? `, by ${by.join(" and ")}` : ""}`;
  }

  function faint(hex) {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r}, ${g}, ${b}, 0.14)`;
  }

  // plotly.js reads a little HTML in its texts.
  function escape(value) {
    return String(value).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  }
})();
