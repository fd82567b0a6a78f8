// Python in a thread of its own, so that the page stays usable while it loads and computes.
"use strict";

let python = null;

async function start() {
  importScripts("pyodide/pyodide.js");
  post("progress", "Starting Python …");
  python = await loadPyodide({ indexURL: new URL("pyodide/", self.location.href).href });
  post("progress", "Loading numpy …");
  await python.loadPackage("numpy", { messageCallback: () => {} });
  post("progress", "Loading the checker …");
  for (const [name, source] of [["checker.py", "data/checker.py"], ["forge.py", "forge.py"]]) {
    python.FS.writeFile(name, await download(source));
  }
  python.runPython("import checker, forge, json");
}

async function download(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function load({ name, network }) {
  for (const file of [`${name}.json`, `${network}.npz`]) {
    if (!python.FS.analyzePath(file).exists) python.FS.writeFile(file, await download(`data/${file}`));
  }
  return JSON.parse(call("describe", `${name}.json`, `${network}.npz`));
}

function call(name, ...values) {
  const procedure = python.globals.get("forge")[name];
  try {
    return procedure(...values);
  } finally {
    procedure.destroy();
  }
}

function check({ name, network, request }) {
  if (!request) return JSON.parse(call("check", `${name}.json`, `${network}.npz`));
  call("forge", `${name}.json`, `${network}.npz`, JSON.stringify(request));
  const result = JSON.parse(call("check", "forged.json", "forged.npz"));
  result.certificate = python.FS.readFile("forged.json");
  result.archive = python.FS.readFile("forged.npz");
  return result;
}

const tasks = {
  start,
  load,
  check,
  weight: ({ network, tensor, row, column }) => call("weight", `${network}.npz`, tensor, row, column),
  lowest: ({ name, network, request }) =>
    call("lowest", `${name}.json`, `${network}.npz`, JSON.stringify(request)),
};

function post(kind, value, number = null) {
  self.postMessage({ kind, value, number });
}

self.onmessage = async ({ data: { task, number, ...values } }) => {
  try {
    post("done", await tasks[task](values), number);
  } catch (error) {
    post("failed", String(error.message || error), number);
  }
};
