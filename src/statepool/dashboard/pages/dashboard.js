// The dashboard: pages by name in the address, figures as they change, no request to anywhere but its server.

import { element } from "./draw.js";
import * as rooms from "./rooms.js";

const PAGES = [
  ["serving", "Workers"], ["rollout", "Rollout"], ["training", "Training"], ["sandboxes", "Sandboxes"],
  ["storage", "Storage"], ["sequences", "Sequences"], ["topology", "Topology"],
];
const AGAIN_MS = 2000;

let figures = null;
let watching = null; // AbortController of the stream of the page that is shown

const $ = (id) => document.getElementById(id);
const wanted = () => (PAGES.some(([name]) => name === location.hash.slice(1)) ? location.hash.slice(1) : "serving");

// The key and the colours are those of the chat page.
function settings() {
  try {
    return JSON.parse(localStorage.getItem("statepool.chat"))?.settings ?? {};
  } catch {
    return {};
  }
}
const headers = () => (settings().key ? { Authorization: `Bearer ${settings().key}` } : {});

async function ask(what, query) {
  const response = await fetch(`/dashboard/detail/${what}?${new URLSearchParams(query)}`, { headers: headers() });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  return body;
}

function status(kind, label) {
  $("status").className = `dot ${kind}`;
  $("status").setAttribute("aria-label", label);
}

function draw() {
  if (!figures) return;
  const name = wanted();
  const held = document.activeElement;
  const place = held && $("page").contains(held) ? [...$("page").querySelectorAll("button, select, [tabindex]")].indexOf(held) : -1;
  if (held?.tagName === "SELECT" && place >= 0 && held.matches(":open")) return; // an open list would close
  const scrolled = [...$("page").querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  const shown = figures.state === "live"
    ? rooms[name](figures, { ask, redraw: draw })
    : [element("div", { class: "empty" }, element("b", {}, figures.state === "off" ? "Not part of this platform" : "Not there at this moment"), figures.why)];
  $("page").replaceChildren(...shown.filter((each) => each != null));
  $("page").dataset.page = name;
  $("page").querySelectorAll(".scroll").forEach((each, i) => (each.scrollLeft = scrolled[i] ?? 0));
  if (place >= 0) $("page").querySelectorAll("button, select, [tabindex]")[place]?.focus({ preventScroll: true });
}

function drawTabs() {
  $("tabs").replaceChildren(...PAGES.map(([name, title]) => element("a", { href: `#${name}`, "aria-current": name === wanted() ? "page" : null }, title)));
  document.title = `${PAGES.find(([name]) => name === wanted())[1]} · statepool`;
  $("tabs").querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
}

async function read(name, signal) {
  const response = await fetch(`/dashboard/live/${name}`, { headers: headers(), signal });
  if (!response.ok) throw new Error(response.status === 401 ? "The key is missing or wrong; set it in the settings of the chat page." : `The server answered ${response.status}.`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      figures = JSON.parse(event.slice(6));
      status("ready", "live");
      draw();
    }
  }
}

async function watch() {
  watching?.abort();
  const mine = (watching = new AbortController());
  figures = null;
  const name = wanted();
  drawTabs();
  while (!mine.signal.aborted) {
    try {
      await read(name, mine.signal);
    } catch (error) {
      if (mine.signal.aborted) return;
      status("lost", "not connected");
      if (!figures) $("page").replaceChildren(element("div", { class: "empty" }, element("b", {}, "No connection"), error.message));
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function theme() {
  const { theme: chosen } = settings();
  document.documentElement.style.colorScheme = chosen === "light" || chosen === "dark" ? chosen : "light dark";
}

window.addEventListener("hashchange", watch);
window.addEventListener("resize", draw);
document.addEventListener("keydown", (event) => {
  const place = Number(event.key) - 1;
  if (!event.ctrlKey && !event.altKey && !event.metaKey && PAGES[place] && event.target.tagName !== "SELECT") location.hash = PAGES[place][0];
});
theme();
watch();
