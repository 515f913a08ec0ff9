// @ts-check
// The token of the person who is signed in: in session storage, and handed to other tabs that ask for it, so that one
// sign-in is enough for a browser session. It is never in an address, a cookie or local storage.

const KEY = "taskherd-token";
const ANSWER_WITHIN = 200; // milliseconds that another tab has to hand over the token
const channel = new BroadcastChannel("taskherd-session");

/** @typedef {"in" | "out" | "expired"} Change */

/** @type {Set<(change: Change) => void>} */
const listeners = new Set();
let current = sessionStorage.getItem(KEY) || "";

/** The token, or "". */
export function token() {
  return current;
}

/**
 * Call a function whenever somebody signs in or out, in this tab or another, or the token turns out to be invalid.
 * @param {(change: Change) => void} listener
 */
export function onChange(listener) {
  listeners.add(listener);
}

/** Return whether a token is there, if need be after asking the other tabs. */
export async function restore() {
  if (current) return true;
  const answered = new Promise((done) => {
    channel.addEventListener("message", ({ data }) => data.token && done(true));
    setTimeout(() => done(false), ANSWER_WITHIN);
  });
  channel.postMessage({ ask: true });
  await answered;
  return current !== "";
}

/** @param {string} entered */
export function signIn(entered) {
  set(entered, "in");
  channel.postMessage({ token: entered });
}

/** Sign out in all tabs. */
export function signOut() {
  set("", "out");
  channel.postMessage({ out: true });
}

/** The API does not accept the token any more. */
export function expired() {
  set("", "expired");
}

/**
 * @param {string} value
 * @param {Change} change
 */
function set(value, change) {
  if (value === current) return;
  current = value;
  if (value) sessionStorage.setItem(KEY, value);
  else if (change === "out") sessionStorage.clear(); // also what was written and not sent: the next person may be another one
  else sessionStorage.removeItem(KEY);
  for (const listener of listeners) listener(change);
}

channel.addEventListener("message", ({ data }) => {
  if (data.ask && current) channel.postMessage({ token: current });
  else if (data.token && !current) set(data.token, "in");
  else if (data.out) set("", "out");
});
