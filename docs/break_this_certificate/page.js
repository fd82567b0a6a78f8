// The page around the checker. It shows what the worker reports; it decides nothing.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const pending = new Map();
  let worker, facts, size, count = 0, latest = 0;

  function ask(task, values = {}) {
    return new Promise((resolve, reject) => {
      pending.set(++count, { resolve, reject });
      worker.postMessage({ task, number: count, ...values });
    });
  }

  function receive({ data: { kind, value, number } }) {
    if (kind === "progress") return say(`${value} (${size} in all)`);
    const { resolve, reject } = pending.get(number);
    pending.delete(number);
    if (kind === "done") resolve(value);
    else reject(new Error(value));
  }

  function say(text, state = "loading") {
    $("runtime-text").textContent = text;
    $("runtime").dataset.state = state;
    $("runtime-progress").hidden = state !== "loading";
  }

  async function prepare() {
    let index;
    try {
      const answer = await fetch("data/networks.json");
      if (!answer.ok) throw new Error(answer.statusText);
      index = await answer.json();
    } catch {
      return say("Opened as a file, this page cannot load Python. Serve the site: python -m http.server", "missing");
    }
    for (const { name, title } of index.networks) $("network").add(new Option(title, name));
    $("notes").textContent = index.notes.join(" ");
    if (!index.runtime_bytes) {
      return say("This site was built without the Python runtime. To have it: run python docs/fetch_pyodide.py, " +
        "build the site again. The checker runs anywhere else, too: python checker.py CERTIFICATE.json NETWORK.npz", "missing");
    }
    size = `${(index.runtime_bytes / 2 ** 20).toFixed(0)} MB`;
    say(`Python, numpy and the checker are ${size}, served from here.`, "waiting");
    $("start").hidden = false;
  }

  async function start() {
    $("start").hidden = true;
    say(`Loading Python … (${size} in all)`);
    worker = new Worker("worker.js");
    worker.onmessage = receive;
    worker.onerror = (event) => say(`The worker failed: ${event.message}`, "failed");
    try {
      await ask("start");
      const solver = await ask("load", { name: "generic_solver", network: "generic_solver" });
      const ours = await ask("load", { name: "generic_solver_ours", network: "generic_solver" });
      $("solver-bound").textContent = plain(solver.bound);
      $("solver-status").textContent = solver.method.match(/'(.*)'/)[1];
      $("ours-bound").textContent = plain(ours.bound);
      $("ours-dual").textContent = plain(ours.optimum);
      await choose();
    } catch (error) {
      return say(`Python did not start: ${error.message}`, "failed");
    }
    say("Python is ready.", "ready");
    $("form").hidden = $("solver").hidden = false;
    $("solver-waits").hidden = true;
  }

  const plain = (number) => (number === null ? "unknown" : String(Number(number.toPrecision(10))));

  async function choose() {
    const name = $("network").value;
    facts = await ask("load", { name, network: name });
    const rows = [
      ["certified", plain(facts.bound)],
      ["no multipliers prove less than", plain(facts.optimum)],
      ["found by search, so that no true bound is below", plain(facts.sampled)],
      ["method", facts.method],
      ["network", facts.hash.slice(0, 16) + " …"],
    ];
    $("facts").replaceChildren(...rows.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
    $("tensor").replaceChildren(...Object.entries(facts.tensors).map(([name, { shape }]) =>
      new Option(`${name} (${shape.join(" × ")})`, name)));
    $("tensor").selectedIndex = $("tensor").length - 1; // the last matrix matters to all outputs
    choosePlace();
    for (const [id, value] of [["mark-sampled", facts.sampled], ["mark-bound", facts.bound]]) {
      $(id).style.left = `${(position(value) / 10).toFixed(2)}%`;
      $(id).hidden = value === null || position(value) < 0;
    }
    if (position(facts.bound) - position(facts.sampled) < 200) $("mark-sampled").hidden = true; // one label over the other
    reset();
  }

  function element(kind, text) {
    const made = document.createElement(kind);
    made.textContent = text;
    return made;
  }

  // The slider runs from half the certified bound to 1.1 times it.
  const position = (bound) => ((bound / facts.bound - 0.5) / 0.6) * 1000;

  function compare() {
    const claimed = Number($("bound").value), part = claimed / facts.bound - 1;
    const percent = Math.abs(100 * part);
    const amount = percent >= 0.01 ? percent.toFixed(2) : percent.toExponential(1);
    $("compared").textContent = part === 0 ? "as certified" : `${amount} % ${part < 0 ? "below" : "above"} the certified one`;
    $("slider").value = position(claimed);
    $("slider").setAttribute("aria-valuetext", `${$("bound").value}, ${$("compared").textContent}`);
  }

  function slide() {
    const claimed = facts.bound * (0.5 + (0.6 * $("slider").value) / 1000);
    $("bound").value = Number(claimed.toPrecision(6));
    compare();
  }

  function reset() {
    $("bound").value = facts.bound;
    $("change").checked = false;
    $("weight").hidden = $("verdict").hidden = true;
    document.querySelector('input[name="effort"]').checked = true;
    compare();
  }

  function choosePlace() {
    [$("row").value, $("column").value] = facts.tensors[$("tensor").value].largest;
  }

  async function showWeight() {
    const [rows, columns] = facts.tensors[$("tensor").value].shape;
    for (const [id, length] of [["row", rows], ["column", columns]]) {
      $(id).max = length - 1;
      $(id).value = Math.min(Math.max(0, Math.trunc(Number($(id).value))), length - 1);
    }
    const old = await ask("weight", {
      network: $("network").value, tensor: $("tensor").value,
      row: Number($("row").value), column: Number($("column").value),
    });
    $("old").textContent = `It was ${plain(old)}.`;
    $("value").value = Number((2 * old).toPrecision(6)) || 1;
  }

  function request() {
    const change = $("change").checked && {
      tensor: $("tensor").value, row: Number($("row").value), column: Number($("column").value),
      value: Number($("value").value),
    };
    return {
      bound: Number($("bound").value), change: change || null,
      effort: document.querySelector('input[name="effort"]:checked').value,
    };
  }

  const HEADLINES = ["Valid", "Refused", "Not readable"];

  async function run(prefix, values, claimed = null) {
    const place = $(prefix ? "solver-verdict" : "verdict"), mine = ++latest;
    place.hidden = false;
    place.dataset.state = "working";
    $(`${prefix}headline`).textContent = "Checking …";
    $(`${prefix}output`).textContent = "";
    try {
      const result = await ask("check", values);
      if (mine !== latest) return null;
      place.dataset.state = ["valid", "refused", "failed"][result.code];
      $(`${prefix}headline`).textContent = HEADLINES[result.code] + (claimed === null ? "" : `: ${claimed}`);
      const files = values.request ? "forged.json forged.npz" : `${values.name}.json ${values.network}.npz`;
      $(`${prefix}output`).textContent = `$ python checker.py ${files}\n${result.output}\n` +
        `(exit code ${result.code}, ${result.seconds.toFixed(2)} s)`;
      place.scrollIntoView({ block: "nearest", behavior: "smooth" });
      return result;
    } catch (error) {
      place.dataset.state = "failed";
      $(`${prefix}headline`).textContent = "The check did not run";
      $(`${prefix}output`).textContent = error.message;
      return null;
    }
  }

  async function check(event) {
    event.preventDefault();
    $("aside").textContent = "";
    $("downloads").hidden = true;
    const name = $("network").value;
    const result = await run("", { name, network: name, request: request() });
    if (!result) return;
    for (const id of ["certificate", "archive"]) {
      if ($(id).href) URL.revokeObjectURL($(id).href);
      $(id).href = URL.createObjectURL(new Blob([result[id]]));
    }
    $("downloads").hidden = false;
  }

  async function lowest() {
    const place = $("verdict"), name = $("network").value;
    place.hidden = false;
    place.dataset.state = "working";
    $("headline").textContent = "Asking the checker twenty times …";
    $("output").textContent = $("aside").textContent = "";
    $("downloads").hidden = true;
    try {
      const bound = await ask("lowest", { name, network: name, request: request() });
      place.dataset.state = "told";
      const none = Number.isNaN(bound);
      $("headline").textContent = none ? "Not even the certified bound" : `Down to ${plain(bound)}`;
      $("aside").textContent = none
        ? "The network was changed, and these multipliers no longer prove the certified bound for it."
        : `The lowest claim that the checker accepts with these multipliers, to a millionth. Certified: ${plain(facts.bound)}.`;
    } catch (error) {
      place.dataset.state = "failed";
      $("headline").textContent = error.message;
    }
  }

  $("start").addEventListener("click", start);
  $("network").addEventListener("change", choose);
  $("slider").addEventListener("input", slide);
  $("bound").addEventListener("input", compare);
  $("change").addEventListener("change", () => {
    $("weight").hidden = !$("change").checked;
    if ($("change").checked) showWeight();
  });
  for (const id of ["tensor", "row", "column"]) $(id).addEventListener("change", () => {
    if (id === "tensor") choosePlace();
    showWeight();
  });
  $("form").addEventListener("submit", check);
  $("reset").addEventListener("click", reset);
  $("lowest").addEventListener("click", lowest);
  for (const [id, name, bound] of [
    ["solver", "generic_solver", null], ["ours", "generic_solver_ours", null], ["recorded", "generic_solver_ours", 912.7],
  ]) {
    $(`check-${id}`).addEventListener("click", () => run(
      "solver-",
      { name, network: "generic_solver", request: bound && { bound, change: null, effort: "everything" } },
      bound || $(`${id}-bound`).textContent,
    ));
  }
  prepare();
})();
