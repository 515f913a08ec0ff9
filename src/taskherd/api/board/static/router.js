// @ts-check
// Which page an address shows. Links inside the board change the page without loading the document again.
import { newKey } from "./api.js";
import { store } from "./session.js";
import { html, render } from "./vendor/lit-html/lit-html.js";

/**
 * @typedef {{name: string, pattern: RegExp, load: () => Promise<any>, nav?: {label: string, href: string, key: string}}} Route
 */

/** The pages; `src/taskherd/api/board/routes.py` has the same paths, and which module to load early for each. @type {Route[]} */
export const ROUTES = [
  { name: "home", pattern: /^\/$/, load: () => import("./pages/home.js"), nav: { label: "Home", href: "/", key: "g h" } },
  {
    name: "tasks", pattern: /^\/tasks\/?$/, load: () => import("./pages/tasks.js"),
    nav: { label: "Tasks", href: "/tasks", key: "g t" },
  },
  { name: "deleted", pattern: /^\/deleted\/?$/, load: () => import("./pages/deleted.js") },
  { name: "task", pattern: /^\/tasks\/(?<user>[^/]+)\/(?<task>[^/]+)\/?$/, load: () => import("./pages/task.js") },
  {
    name: "fleet", pattern: /^\/fleet\/?$/, load: () => import("./pages/fleet.js"),
    nav: { label: "Fleet", href: "/fleet", key: "g f" },
  },
  { name: "new", pattern: /^\/new\/?$/, load: () => import("./pages/new.js") },
];

/**
 * What a page gets when it is opened.
 * @typedef {object} View
 * @property {HTMLElement} root where the page renders
 * @property {Record<string, string>} params the parts of the path that the route names
 * @property {URLSearchParams} query
 * @property {AbortSignal} signal aborts when the page is left: ends its feed, requests, shortcuts and listeners
 * @property {(title: string) => void} setTitle
 * @property {() => void} shown to be called once the first content is there: the scroll position is restored then
 */

/** @typedef {(view: View) => void} Page */

const SCROLLS_KEY = "taskherd-scrolls"; // in session storage: how far entries of the history were scrolled when they were left
const MAX_SCROLLS = 50;

let opened = new AbortController();
let address = ""; // of the page that is open
let entry = ""; // of the history, as above
let isFirst = true; // whether no page has been opened yet
/** @type {(title: string) => void} */
let setTitle = () => {};
let mayOpen = () => true;
/** @type {Set<() => void>} */
const listeners = new Set();
/** @type {Set<() => void>} */
const shownListeners = new Set();

/** @param {string} path */
export function match(path) {
  for (const route of ROUTES) {
    const found = route.pattern.exec(path);
    if (!found) continue;
    const params = Object.fromEntries(Object.entries(found.groups || {}).map(([key, value]) => [key, decode(value)]));
    return { route, params };
  }
  return null;
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Go to an address of the board. One that is no page of the board is loaded by the browser.
 * @param {string} address path and query
 * @param {{replace?: boolean}} [options]
 */
export function go(address, { replace = false } = {}) {
  const url = new URL(address, location.href);
  if (url.origin !== location.origin || !match(url.pathname)) return location.assign(url);
  keepScroll();
  history[replace ? "replaceState" : "pushState"]({ inside: true }, "", url); // unlike the address of a link from elsewhere
  show();
}

/** Where the page is, or is to be, scrolled to; 0 for one that was not there before. */
export function scrollOf() {
  return scrolls()[history.state?.entry] || 0;
}

/** @returns {Record<string, number>} by the entries of the history */
function scrolls() {
  return JSON.parse(sessionStorage.getItem(SCROLLS_KEY) || "{}");
}

/** Keep how far the page is scrolled, before another one takes its place: while it opens, it is not where it was. */
export function keepScroll() {
  if (!document.querySelector("#main > .page[data-ready]")) return;
  const { [entry]: _, ...others } = scrolls();
  const kept = Object.entries({ ...others, [entry]: scrollY }).slice(-MAX_SCROLLS);
  store(SCROLLS_KEY, JSON.stringify(Object.fromEntries(kept)));
}

/** Remember which entry of the history is shown, and name it if it is new. */
function enter() {
  address = location.pathname + location.search;
  entry = history.state?.entry || newKey();
  if (entry !== history.state?.entry) history.replaceState({ ...history.state, entry }, "");
}

function onPopState() {
  const isOpen = address === location.pathname + location.search; // only the fragment is another one
  if (!isOpen) keepScroll();
  enter();
  if (!isOpen) show();
}

/**
 * Change the query of this page's address without opening the page again.
 * @param {URLSearchParams} query
 * @param {{replace?: boolean}} [options]
 */
export function setQuery(query, { replace = true } = {}) {
  const text = query.toString().replaceAll("%3A", ":").replaceAll("%2F", "/");
  const state = replace ? history.state : { ...history.state, entry: "" };
  if (!replace) keepScroll();
  history[replace ? "replaceState" : "pushState"](state, "", location.pathname + (text ? `?${text}` : ""));
  enter();
}

/** @param {() => void} listener called after each change of the page */
export function onNavigate(listener) {
  listeners.add(listener);
}

/** @param {() => void} listener called when the first content of a page is there */
export function onShown(listener) {
  shownListeners.add(listener);
}

/** The signal of the page that is open, which aborts when it is left: ends what stands above it, such as a dialog. */
export function leaving() {
  return opened.signal;
}

/** Open the page of the current address again, as after signing in. */
export async function show() {
  close();
  enter();
  if (!mayOpen()) return;
  const { signal } = opened;
  const root = /** @type {HTMLElement} */ (document.getElementById("main"));
  const found = match(location.pathname);
  const page = /** @type {{default: Page} | null | undefined} */ (await found?.route.load().catch(() => null));
  if (signal.aborted) return;
  for (const listener of listeners) listener(); // what is around the page changes with it: a paint of its own takes as long
  const isLater = !isFirst;
  isFirst = false;
  if (isLater) root.focus({ preventScroll: true }); // or it stays on a link that is gone
  const name = (/** @type {string} */ title) => {
    if (signal.aborted) return;
    setTitle(title);
    if (isLater && !isNamed) announce(title);
    isNamed = true;
  };
  let isNamed = false;
  if (!found) {
    name("Not found");
    return say(root, "There is no such page");
  }
  if (!page) {
    name("Not loaded");
    return say(root, "This page could not be loaded", html`<button class="button" @click=${show}>Try again</button> `);
  }
  const fresh = document.createElement("div"); // each page has its own, so that one never renders into another's
  fresh.className = `page ${found.route.name}`;
  root.replaceChildren(fresh);
  const scroll = scrollOf();
  let isShown = false;
  if (!scroll && isLater) scrollTo(0, 0); // which computes the layout
  page.default({
    root: fresh,
    params: found.params,
    query: new URLSearchParams(location.search),
    signal,
    setTitle: name,
    shown: () => {
      if (isShown) return; // what is read again later takes nobody back
      isShown = true;
      fresh.dataset.ready = "";
      for (const listener of shownListeners) listener();
      if (scroll) requestAnimationFrame(() => scrollTo(0, scroll));
    },
  });
}

/** End the page that is open, as for the sign-in form. What opens above that ends with the next page. */
export function close() {
  opened.abort();
  opened = new AbortController();
}

/**
 * Tell screen readers something without showing it.
 * @param {string} text
 */
export function announce(text) {
  const live = document.getElementById("live");
  if (live) live.textContent = text;
}

/**
 * Say why there is no page, and where to go on.
 * @param {HTMLElement} root
 * @param {string} why
 */
function say(root, why, retry = html``) {
  const text = document.createElement("div");
  text.className = "page empty";
  text.dataset.ready = "";
  render(html`<h1>${why}</h1>
    <p>${retry}<a class="button" href="/">Home</a> <a class="button" href="/tasks">Tasks</a></p>`, text);
  root.replaceChildren(text);
}

/**
 * @param {(title: string) => void} titled sets the title of the window
 * @param {() => boolean} guard says whether a page may open; if not, it has shown what stands in its place
 */
export function start(titled, guard) {
  setTitle = titled;
  mayOpen = guard;
  history.scrollRestoration = "manual";
  addEventListener("popstate", onPopState);
  addEventListener("pagehide", keepScroll);
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = /** @type {HTMLAnchorElement | null} */ (/** @type {Element} */ (event.target).closest("a[href]"));
    if (!link || link.target || link.download || link.origin !== location.origin) return;
    if (link.hash && link.pathname === location.pathname) return;
    if (!match(link.pathname)) return;
    event.preventDefault();
    go(link.href);
  });
}
