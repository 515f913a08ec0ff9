// @ts-check
// Numbers and times for people. `<time-ago at="…">` keeps itself up to date and has the exact time as its
// title once the pointer or the focus is on it.
import { now } from "./api.js";

const MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const TICK = 5_000; // milliseconds between two looks at the clock

// Each is made when it is first used: together they take as long as all other scripts of a page.
const exactFormat = once(() => new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" }));
const clockFormat = once(() => new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" }));
const dayFormat = once(() => new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" }));
const numberFormat = once(() => new Intl.NumberFormat());
const compactFormat = once(() => new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }));

/**
 * @template T
 * @param {() => T} make
 * @returns {() => T} returns what `make` returned at the first call
 */
function once(make) {
  /** @type {T | undefined} */
  let made;
  return () => (made ??= make());
}

/**
 * How long a span is, in its largest unit: `12 s`, `4 min`, `3 h`, `5 d`.
 * @param {number} seconds
 */
export function span(seconds) {
  if (seconds < MINUTE) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < HOUR) return `${Math.floor(seconds / MINUTE)} min`;
  if (seconds < 2 * DAY) return `${Math.floor(seconds / HOUR)} h`;
  return `${Math.floor(seconds / DAY)} d`;
}

/**
 * The age of a time, which stands behind a word, as in `working 4 min`: `1 s` at least, of which nobody sees that it is no age.
 * @param {string} time RFC 3339
 */
export function age(time) {
  return span(Math.max(1, (now() - Date.parse(time)) / 1000)); // the server's clock is known to two seconds
}

/**
 * A time as people say it: `just now`, `4 min ago`, `in 10 min`.
 * @param {string} time RFC 3339
 */
export function ago(time) {
  const seconds = (now() - Date.parse(time)) / 1000; // the server's clock is known to two seconds
  if (seconds < -3) return `in ${span(-seconds)}`;
  return seconds < 10 ? "just now" : `${span(seconds)} ago`;
}

/**
 * The exact time, in the reader's zone.
 * @param {string} time
 */
export function exact(time) {
  return exactFormat().format(new Date(time));
}

/**
 * The time of day, with the day if it is another one.
 * @param {string} time
 */
export function clock(time) {
  const at = new Date(time);
  const today = new Date(now());
  const text = clockFormat().format(at);
  return at.toDateString() === today.toDateString() ? text : `${dayFormat().format(at)}, ${text}`;
}

/**
 * Compare two times (RFC 3339), for `sort`. `localeCompare` would load the tables of a language first.
 * @param {string} one
 * @param {string} other
 */
export function compare(one, other) {
  if (one === other) return 0;
  return one < other ? -1 : 1;
}

/** @param {number} value */
export function count(value) {
  return Number.isInteger(value) && value >= 0 && value < 1000 ? String(value) : numberFormat().format(value);
}

/**
 * A number and its noun: `1 task`, `12 tasks`.
 * @param {number} value
 * @param {string} noun
 */
export function plural(value, noun, nouns = `${noun}s`) {
  return `${count(value)} ${value === 1 ? noun : nouns}`;
}

/**
 * A large number, shortened: `182K`, `1.2M`.
 * @param {number} value
 */
export function compact(value) {
  return compactFormat().format(value);
}

/** @param {number} value */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/**
 * Amounts of money in their currencies: `$1.92`, or `""` for none. Small ones keep the digits that matter.
 * @param {{amount: string, currency: string}[] | undefined} costs
 */
export function money(costs) {
  return (costs || []).map(({ amount, currency }) => {
    const value = Number(amount);
    const digits = value && value < 0.01 ? 4 : 2;
    const options = { minimumFractionDigits: 2, maximumFractionDigits: digits };
    try {
      return new Intl.NumberFormat(undefined, { style: "currency", currency, currencyDisplay: "narrowSymbol", ...options }).format(value);
    } catch {
      return `${value.toFixed(digits)} ${currency}`;
    }
  }).join(" + ");
}

/** Hosts where a name and a number say which pull request it is; of any other one, the text has the host, too. */
const FORGES = new Set(["https://github.com", "https://gitlab.com", "https://bitbucket.org", "https://codeberg.org"]);

/**
 * A link to a pull request, an issue or anything else, shortened: `acme/shop#1207`, `git.example.com/acme/shop#7`, `example.com/x`;
 * null if it is no http(s) link. Agents say where it leads: what shows it has the whole address as its title.
 * @param {string | undefined | null} uri
 */
export function link(uri) {
  if (!uri || !/^https?:\/\//i.test(uri)) return null;
  let url;
  try {
    url = new URL(uri);
  } catch {
    return null;
  }
  const numbered = /^\/(.+?)\/(?:-\/)?(?:pull|pulls|issues|merge_requests|pull-requests)\/(\d+)/.exec(url.pathname);
  if (numbered) return { href: url.href, text: `${FORGES.has(url.origin) ? "" : `${url.host}/`}${numbered[1]}#${numbered[2]}` };
  const path = url.pathname === "/" ? "" : url.pathname;
  return { href: url.href, text: `${url.host}${path}` };
}

const FORMS = { ago, age, clock, exact };

/** `<time-ago at="2026-…" form="ago|age|clock">` */
class TimeAgo extends HTMLElement {
  static observedAttributes = ["at", "form"];

  isExact = false;

  connectedCallback() {
    shown.add(this);
    this.update();
  }

  disconnectedCallback() {
    shown.delete(this);
  }

  attributeChangedCallback() {
    if (this.isConnected) this.update();
  }

  update() {
    const at = this.getAttribute("at") || "";
    const isTime = !Number.isNaN(Date.parse(at));
    const form = /** @type {keyof typeof FORMS} */ (this.getAttribute("form") || "ago");
    const text = isTime ? FORMS[this.isExact ? "exact" : form](at) : "";
    if (this.textContent !== text) this.textContent = text;
    if (this.title) this.explain();
  }

  /** Not called before somebody looks closer: the exact time takes longer to format than all else of a row. */
  explain() {
    const at = this.getAttribute("at") || "";
    this.title = Number.isNaN(Date.parse(at)) ? "" : exact(at);
  }
}

/** @type {Set<TimeAgo>} */
const shown = new Set();
setInterval(() => document.hidden || shown.forEach((each) => each.update()), TICK);
document.addEventListener("pointerover", ({ target }) => target instanceof TimeAgo && target.explain());
document.addEventListener("focusin", ({ target }) => {
  const within = /** @type {NodeListOf<TimeAgo>} */ (/** @type {Element} */ (target).querySelectorAll("time-ago"));
  within.forEach((each) => each.explain());
});
document.addEventListener("click", ({ target }) => { // a finger cannot point
  if (!(target instanceof TimeAgo) || target.closest("a, button, summary, label")) return;
  target.isExact = !target.isExact;
  target.update();
});
document.addEventListener("visibilitychange", () => shown.forEach((each) => each.update()));
customElements.define("time-ago", TimeAgo);

/**
 * A search term, as the API reads it (`http/search_query.py`): it splits at spaces and colons that are not quoted.
 * @param {string} key "" for a bare word
 * @param {string} value
 */
export function term(key, value) {
  return `${key && `${key}:`}${quoted(value)}`;
}

/** @param {string} value of a search term */
export function quoted(value) {
  return /[\s:]/.test(value) ? `"${value}"` : value;
}
