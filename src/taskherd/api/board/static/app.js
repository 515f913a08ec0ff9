// @ts-check
// The frame of every page: sign-in, navigation, offline banner, theme, and what title and icon say.
import * as api from "./api.js";
import * as attention from "./attention.js";
import { showFeedState } from "./feed.js";
import * as keys from "./keys.js";
import * as router from "./router.js";
import * as session from "./session.js";
import { html, nothing, render } from "./vendor/lit-html/lit-html.js";

const THEMES = /** @type {const} */ (["system", "light", "dark"]);
const THEME_KEY = "taskherd-theme";

const top_ = /** @type {HTMLElement} */ (document.getElementById("top"));
const main = /** @type {HTMLElement} */ (document.getElementById("main"));

function frame() {
  const signedIn = session.token() !== "", username = session.user();
  const current = router.match(location.pathname)?.route.name;
  const theme = localStorage.getItem(THEME_KEY) || "system";
  render(html`
    <header class="bar">
      <a class="brand" href="/"><svg viewBox="0 0 32 32" width="20" height="20" aria-hidden="true"><rect width="32" height="32" rx="8"/><g><circle cx="10.5" cy="11" r="3.2"/><circle cx="21.5" cy="11" r="3.2" opacity=".72"/><circle cx="10.5" cy="21.5" r="3.2" opacity=".72"/><circle cx="21.5" cy="21.5" r="3.2" opacity=".4"/></g></svg>taskherd</a>
      <nav aria-label="Pages">
        ${router.ROUTES.filter((each) => each.nav).map(({ name, nav }) => html`
          <a href=${nav?.href || ""} aria-current=${name === current ? "page" : nothing}>${nav?.label}</a>`)}
      </nav>
      ${signedIn ? html`
        <form class="find" role="search" @submit=${find}>
          <input name="q" type="search" dir="auto" placeholder="Find or filter tasks" aria-label="Find or filter tasks" autocomplete="off" spellcheck="false">
          <kbd aria-hidden="true">/</kbd>
        </form>
        <a class="button go new" href="/new"><span class="wide">New task</span><span class="narrow" aria-hidden="true">+</span></a>` : nothing}
      <details class="menu">
        <summary aria-label="Menu"><span class="avatar" aria-hidden="true">${username ? username[0].toUpperCase() : "☰"}</span></summary>
        <div class="menu-items">
          ${username ? html`<p class="soft">Signed in as <b>${username}</b></p>` : nothing}
          <fieldset class="segments" @change=${setTheme}><legend>Appearance</legend>
            ${THEMES.map((each) => html`<label><input type="radio" name="theme" value=${each} .checked=${each === theme}><span>${each}</span></label>`)}
          </fieldset>
          <label class="item">Single-key shortcuts <input type="checkbox" .checked=${keys.areOn()} @change=${turnKeys}></label>
          <button class="item" @click=${keys.help}>Keyboard <kbd>?</kbd></button>
          ${signedIn ? html`<button class="item" @click=${session.signOut}>Sign out</button>` : nothing}
        </div>
      </details>
    </header>
    <div id="offline" class="offline" role="status" hidden>Not connected. Trying again…</div>`, top_);
}

/** @param {Event} event */
function setTheme(event) {
  const theme = /** @type {HTMLInputElement} */ (event.target).value;
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME_KEY, theme);
}

/** @param {Event} event */
function turnKeys(event) {
  keys.turn(/** @type {HTMLInputElement} */ (event.target).checked);
}

/** @param {SubmitEvent} event */
async function find(event) {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.currentTarget);
  const text = String(new FormData(form).get("q")).trim();
  form.reset();
  /** @type {HTMLElement} */ (document.activeElement)?.blur();
  const { meant } = await import("./query.js"); // which no page but the tasks' needs
  const query = meant(text);
  router.go(query ? `/tasks?q=${encodeURIComponent(query).replaceAll("%3A", ":")}` : "/tasks");
}

/** @param {string} [reason] */
function signInPage(reason = "") {
  router.close();
  attention.stop();
  showFeedState("ended");
  frame();
  document.title = "Sign in · taskherd";
  const page = document.createElement("div");
  page.className = "page sign-in";
  main.replaceChildren(page);
  const show = (/** @type {string} */ failed, busy = false) => render(html`
    <form class="card" @submit=${submit}>
      <h1>Sign in</h1>
      <p class="soft" id="token-help">Enter an API token. Whoever runs taskherd makes one for you, with <code>taskherd token create --user NAME</code>. It is kept until you close the browser's tabs, and nowhere else.</p>
      <label class="field"><span>Token</span>
        <input id="token" name="token" type="password" autocomplete="off" spellcheck="false" required aria-describedby="token-help"></label>
      ${failed ? html`<p class="problem" role="alert">${failed}</p>` : nothing}
      <button class="button go" ?disabled=${busy}>Sign in</button>
    </form>`, page);
  /** @param {SubmitEvent} event */
  async function submit(event) {
    event.preventDefault();
    const field = /** @type {HTMLInputElement} */ (page.querySelector("#token"));
    const token = field.value.trim();
    field.value = "";
    if (!token) return;
    show("", true);
    const { user, problem } = strange(token) || await api.check(token);
    if (problem) {
      show(problem);
      return field.focus();
    }
    session.signIn(token, user);
  }
  show(reason);
  /** @type {HTMLElement} */ (page.querySelector("#token")).focus();
}

/** Whether a page may open. Without a token the sign-in stands in its place, with what was typed there. */
function isSignedIn() {
  if (session.token()) return true;
  const field = /** @type {HTMLElement | null} */ (main.querySelector("#token"));
  if (!field) signInPage();
  else {
    frame(); // which marks the page that signing in opens
    field.focus();
  }
  return false;
}

/**
 * Say which character of an entered text no token has, such as an invisible one, of which requests cannot be made; null if there is none.
 * @param {string} token
 */
function strange(token) {
  const found = /[^!-~]/u.exec(token);
  if (!found) return null;
  const code = /** @type {number} */ (found[0].codePointAt(0)).toString(16).toUpperCase().padStart(4, "0");
  const problem = `A token has letters, digits and signs of ASCII only: character ${found.index + 1} is U+${code}. Copy the token again.`;
  return { user: "", problem };
}

async function signedIn() {
  attention.stop(); // it may have counted what another person saw
  main.replaceChildren();
  const opening = router.show(); // which draws the frame, too
  const token = session.token();
  const me = await api.get("/users/me");
  if (me.ok) session.named(token, me.value.username);
  await opening;
  frame();
  if (session.token()) attention.start(); // not before: Home says itself what needs a person
}

keys.bind("Everywhere", [
  { keys: "?", does: "Show this help", run: keys.help },
  { keys: "/", does: "Find or filter tasks", run: () => focusFilter() },
  { keys: "n", does: "New task", run: () => router.go("/new") },
  ...router.ROUTES.flatMap(({ nav }) => (nav ? [{ keys: nav.key, does: `Go to ${nav.label}`, run: () => router.go(nav.href) }] : [])),
]);

function focusFilter() {
  const fields = /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("input[type=search], input[role=combobox]"));
  const field = [...fields].reverse().find((each) => each.offsetParent); // the page's own before the bar's
  if (field) field.select();
  else router.go("/tasks");
}

/** @param {Event} event where somebody goes on: menus elsewhere have had their time */
function closeMenus({ target }) {
  for (const menu of openMenus()) if (!menu.contains(/** @type {Node} */ (target))) menu.open = false;
}

/** Those of the page, too. */
function openMenus() {
  return /** @type {NodeListOf<HTMLDetailsElement>} */ (document.querySelectorAll("details.menu[open]"));
}

document.addEventListener("pointerdown", closeMenus);
document.addEventListener("focusin", closeMenus);
document.addEventListener("click", ({ target }) => {
  const chosen = /** @type {Element} */ (target).closest("details.menu .item:not(label)");
  if (chosen) /** @type {HTMLDetailsElement} */ (chosen.closest("details")).open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of openMenus()) {
    event.preventDefault(); // the shortcuts of the page do not get it
    menu.open = false;
    menu.querySelector("summary")?.focus();
  }
}, { capture: true });

function sayThatItFailed() {
  const say = "Something went wrong on this page. Reload it; if that does not help, tell whoever runs taskherd.";
  import("./dialog.js").then(({ toast }) => toast(say, { bad: true }), () => {});
}

session.onChange((change) => {
  if (change === "expired") router.keepScroll(); // who signs in again goes on there
  if (change === "in") signedIn();
  else signInPage(change === "expired" ? "Your token is not valid any more. Sign in again." : "");
});
router.onNavigate(() => {
  showFeedState("ended"); // that of the page before
  frame();
});
router.start(attention.setTitle, isSignedIn);
const whenIdle = window.requestIdleCallback || setTimeout;
router.onShown(() => whenIdle(() => import("./dialog.js").catch(() => {}))); // it tells of an outage, too
addEventListener("unhandledrejection", ({ reason }) => {
  console.error(reason);
  sayThatItFailed();
});
addEventListener("error", ({ error }) => error && sayThatItFailed()); // without one it is a notice of the browser
if (session.token()) signedIn();
else if (!await session.restore()) signInPage(); // a token of another tab was announced as a change
