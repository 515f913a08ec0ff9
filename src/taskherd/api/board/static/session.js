// @ts-check
// Who is signed in, and what they have written and not sent. Both are in session storage; a token is handed to other tabs that ask
// for it, so that one sign-in is enough for a browser session. It is never in an address, a cookie or local storage.

const KEY = "taskherd-token";
const USER_KEY = "taskherd-user";
const DRAFT = "taskherd-draft"; // before the name of the person and of the draft
const ANSWER_WITHIN = 200; // milliseconds that another tab has to hand over the token
const channel = new BroadcastChannel("taskherd-session");

/** @typedef {"in" | "out" | "expired"} Change */

/** @type {Set<(change: Change) => void>} */
const listeners = new Set();
/** Tokens that the API has refused in a tab: this one neither hands them over nor takes them. @type {Set<string>} */
const dead = new Set();
/** What was written and not sent, by its key in session storage, which may be full. @type {Map<string, string>} */
const written = new Map();
let current = sessionStorage.getItem(KEY) || "";
let username = sessionStorage.getItem(USER_KEY) || "";
/** @type {Promise<void> | null} while the other tabs are asked for a token */
let asking = null;
let heard = () => {};

/** The token, or "". */
export function token() {
  return current;
}

/** The name of the person, or "" while it is not known. */
export function user() {
  return username;
}

/**
 * Call a function whenever somebody signs in or out, in this tab or another, or the token turns out to be invalid. A new token of the
 * same person is no change.
 * @param {(change: Change) => void} listener
 */
export function onChange(listener) {
  listeners.add(listener);
}

/** Return whether a token is there, if need be after asking the other tabs. */
export async function restore() {
  if (!current) await ask();
  return current !== "";
}

/**
 * @param {string} entered a token that the API accepts
 * @param {string} name of its user
 */
export function signIn(entered, name) {
  dead.delete(entered);
  set(entered, name, "in");
  channel.postMessage({ token: entered, user: name, isNew: true, dead: [...dead] });
}

/**
 * @param {string} of a token
 * @param {string} name of its user, as the API has it
 */
export function named(of, name) {
  if (current && of === current) set(current, name, "in");
}

/** Sign out in all tabs. */
export function signOut() {
  set("", "", "out");
  channel.postMessage({ out: true });
}

/**
 * The API has refused a token. Return whether there is another one of the same person by now, in this tab or in one that is asked;
 * otherwise the session has expired.
 * @param {string} refused
 * @param {string} of the name of its user
 */
export async function renew(refused, of) {
  if (!refused) return false;
  if (refused === current) {
    dead.add(refused);
    await ask();
    if (refused === current) set("", "", "expired");
  }
  return current !== "" && of !== "" && username === of;
}

/** Ask the other tabs for a token, and tell them which ones are dead. */
function ask() {
  asking ||= new Promise((/** @type {(value?: any) => void} */ done) => {
    heard = done;
    setTimeout(done, ANSWER_WITHIN);
    channel.postMessage({ ask: true, dead: [...dead] });
  }).finally(() => (asking = null));
  return asking;
}

/**
 * @param {string} value
 * @param {string} name
 * @param {Change} change
 */
function set(value, name, change) {
  if (change === "out") { // also what was written and not sent: the next person may be another one
    sessionStorage.clear();
    written.clear();
  }
  const isSame = value === current || (value !== "" && current !== "" && name !== "" && name === username);
  [current, username] = [value, name];
  store(KEY, value);
  store(USER_KEY, name);
  if (!isSame) for (const listener of listeners) listener(change);
}

/**
 * Keep something in session storage.
 * @param {string} key
 * @param {string} value "" removes it
 */
export function store(key, value) {
  try {
    if (value) sessionStorage.setItem(key, value);
    else sessionStorage.removeItem(key);
  } catch {
    sessionStorage.removeItem(key); // there is no room: it is kept until the document is left
  }
}

channel.addEventListener("message", ({ data }) => {
  if (data.isNew) dead.delete(data.token);
  for (const each of data.dead || []) dead.add(each);
  const isSignedIn = current !== "" && !dead.has(current);
  if (data.ask && isSignedIn) channel.postMessage({ token: current, user: username });
  else if (data.token && !isSignedIn && !dead.has(data.token)) {
    set(data.token, data.user || "", "in");
    heard();
  } else if (data.out) set("", "", "out");
});

/**
 * Return what the person has written and not sent, or "".
 * @param {string} name of the field
 */
export function draft(name) {
  const key = `${DRAFT}:${username}:${name}`;
  return written.get(key) ?? sessionStorage.getItem(key) ?? "";
}

/**
 * Keep what the person has written until it is sent or they sign out, also over a token that expires: who signs in after that and
 * is somebody else does not get it.
 * @param {string} name of the field
 * @param {string} text "" once it is sent, or given up
 */
export function keepDraft(name, text) {
  const key = `${DRAFT}:${username}:${name}`;
  written.set(key, text);
  store(key, text);
}

/**
 * The `input` listener of a field whose text is kept.
 * @param {string} name of the field
 * @returns {(event: Event) => void}
 */
export function keepField(name) {
  return ({ currentTarget }) => keepDraft(name, /** @type {HTMLTextAreaElement} */ (currentTarget).value);
}
