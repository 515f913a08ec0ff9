// @ts-check
// New task. A link such as `/new?template=codex&prompt=…` fills the form; nothing but the person's own press starts a task.
import * as api from "../api.js";
import { bytes } from "../format.js";
import { bind, submitOnEnter } from "../keys.js";
import * as router from "../router.js";
import * as session from "../session.js";
import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";

const LAST_TEMPLATE_KEY = "taskherd-last-template";
const MAX_PROMPT = 256 * 1024; // bytes
const MAX_CARDS = 8; // templates that are shown as cards instead of a list

/**
 * `template` is an id, since organizations may use the same names, `preset` an id or the name of a link.
 * @typedef {{template: string, preset: string, prompt: string, display_name: string, name: string, labels: string}} Fields
 */

/** @type {import("../router.js").Page} */
export default function newTask(view) {
  new NewTask(view).start();
}

class NewTask {
  /** @param {import("../router.js").View} view */
  constructor(view) {
    this.view = view;
    this.search = location.search;
    /** @type {Fields} */
    this.fields = { template: "", preset: "", prompt: "", display_name: "", name: "", labels: "" };
    /** @type {any[]} */
    this.templates = [];
    /** @type {any[]} */
    this.presets = [];
    /** @type {Promise<void> | null} while the presets of the template are being read */
    this.readingPresets = null;
    /** @type {any} */
    this.presetsFailed = null;
    this.loaded = false;
    this.isLink = false;
    this.isForeign = false; // whether the link may be of somebody else
    this.gone = ""; // why the task of the link is not there
    this.busy = false;
    this.key = api.newKey(); // repeating the same submission starts nothing twice
    /** @type {any} */
    this.failed = null;
    /** @type {Record<string, string>} what is wrong, by the field of the API */
    this.problems = {};
  }

  async start() {
    const { signal, query } = this.view;
    this.view.setTitle("New task");
    bind("New task", [{ keys: "p", does: "Write the prompt", run: () => this.prompt?.focus() }], signal);
    await Promise.all([this.readTemplates(), this.fill(query)]);
    if (signal.aborted) return;
    this.open();
    this.view.shown();
  }

  async readTemplates() {
    const answer = await api.get("/templates", { signal: this.view.signal });
    this.failed = answer.ok ? null : answer;
    this.templates = answer.ok ? answer.value : [];
  }

  open() {
    this.loaded = true;
    if (!this.failed) this.chooseTemplate(this.fields.template || localStorage.getItem(LAST_TEMPLATE_KEY) || "");
    this.draw();
    this.prompt?.focus();
  }

  async readAgain() {
    this.loaded = false;
    this.draw();
    await this.readTemplates();
    if (!this.view.signal.aborted) this.open();
  }

  get prompt() {
    return /** @type {HTMLTextAreaElement | null} */ (this.view.root.querySelector("#prompt"));
  }

  /** @param {URLSearchParams} query */
  async fill(query) {
    const from = query.get("from")?.split("/");
    if (from?.length === 2) {
      const answer = await api.get(api.taskPath({ owner_name: from[0], name: from[1] }), { signal: this.view.signal });
      if (answer.ok) {
        const { id, template_id: template, initial_prompt: prompt, labels } = answer.value;
        const builds = await api.get(`/workspaces/${id}/builds?limit=1`, { signal: this.view.signal }); // which name its preset
        const preset = (builds.ok && builds.value[0]?.template_version_preset_id) || "";
        Object.assign(this.fields, { template, preset, prompt, labels: Object.entries(labels || {}).map((each) => each.join("=")).join("\n") });
        this.isLink = true;
        this.isForeign = !history.state?.inside;
      } else this.gone = answer.status === 404 ? `There is no task ${from.join("/")} any more, or you may not see it.` : api.explain(answer);
    }
    for (const name of /** @type {(keyof Fields)[]} */ (["template", "preset", "prompt", "display_name", "name"])) {
      const value = query.get(name);
      if (value === null) continue;
      this.fields[name] = value;
      this.isLink = this.isForeign = true;
    }
    const labels = query.getAll("label");
    if (labels.length) {
      this.fields.labels = labels.join("\n");
      this.isLink = this.isForeign = true;
    }
    if (this.isLink && !history.state?.edited) return; // the same link, gone to again, fills the form again
    try {
      Object.assign(this.fields, JSON.parse(session.draft(this.draft) || "{}"));
    } catch {
      session.keepDraft(this.draft, "");
    }
  }

  /** The name under which what was written is kept: each link has its own. */
  get draft() {
    return this.isLink ? `new${this.search}` : "new";
  }

  /** @param {string} name of a template, or its id, which counts first */
  chooseTemplate(name) {
    const wanted = name.toLowerCase();
    const found = this.templates.find((each) => each.id === wanted) || this.templates.find((each) => each.name.toLowerCase() === wanted);
    const chosen = found || (name && this.isLink ? null : this.templates[0]);
    this.missing = !found && this.isLink && this.fields.template ? this.fields.template : "";
    this.fields.template = chosen?.id || "";
    this.readPresets();
  }

  get template() {
    return this.templates.find((each) => each.id === this.fields.template);
  }

  /** Read the presets of the template: a task is not started without the one that it should have. */
  readPresets() {
    const { template } = this;
    this.presets = [];
    this.presetsFailed = null;
    const reading = template ? this.loadPresets(template).finally(() => {
      if (this.readingPresets !== reading) return;
      this.readingPresets = null;
      this.draw();
    }) : null;
    this.readingPresets = reading;
  }

  /** @param {any} template */
  async loadPresets(template) {
    const answer = await api.get(`/templateversions/${template.active_version_id}/presets`, { signal: this.view.signal });
    if (this.template?.id !== template.id) return;
    if (!answer.ok) {
      this.presetsFailed = answer;
      return;
    }
    this.presets = answer.value;
    const wanted = this.fields.preset.toLowerCase();
    const found = this.presets.find((each) => each.ID === wanted || each.Name.toLowerCase() === wanted) || this.presets.find((each) => each.Default);
    this.fields.preset = found?.ID || "";
  }

  /**
   * @param {keyof Fields} name
   * @param {string} value
   */
  set(name, value) {
    this.fields[name] = value;
    this.key = api.newKey();
    delete this.problems[name];
    if (name === "template") {
      this.fields.preset = "";
      this.chooseTemplate(value);
      localStorage.setItem(LAST_TEMPLATE_KEY, value);
    }
    session.keepDraft(this.draft, JSON.stringify(this.fields));
    if (this.isLink && !history.state?.edited) history.replaceState({ ...history.state, edited: true }, "");
    this.draw();
  }

  /** @param {SubmitEvent} event */
  async submit(event) {
    event.preventDefault();
    const { template, fields } = this;
    if (this.busy || !template || this.presetsFailed) return;
    const labels = parseLabels(fields.labels);
    this.problems = {};
    if (!fields.prompt.trim()) this.problems.input = "Say what the agent is to do.";
    if (labels === null) this.problems.labels = "Expected one label on each line: key=value.";
    if (Object.keys(this.problems).length) return this.showProblems();
    this.busy = true;
    this.failed = null;
    this.draw();
    await this.readingPresets;
    if (this.view.signal.aborted || this.presetsFailed || this.template !== template) {
      this.busy = false;
      return this.draw();
    }
    const written = session.draft(this.draft);
    const answer = await api.send("POST", "/tasks/me", {
      template_version_id: template.active_version_id,
      input: fields.prompt,
      ...(fields.preset && { template_version_preset_id: fields.preset }),
      ...(fields.display_name.trim() && { display_name: fields.display_name.trim() }),
      ...(fields.name.trim() && { name: fields.name.trim() }),
      ...(labels && Object.keys(labels).length && { labels }),
    }, { key: this.key });
    this.busy = false;
    const left = this.view.signal.aborted; // perhaps to the form, where something else may be written by now
    if (answer.ok && (!left || session.draft(this.draft) === written)) session.keepDraft(this.draft, "");
    if (left) return this.tell(answer);
    if (answer.ok) return router.go(api.taskPath(answer.value));
    if (!api.isUnsettled(answer)) this.key = api.newKey();
    for (const { field, detail } of answer.validations) this.problems[field] = detail;
    this.failed = answer.validations.some((each) => each.field in FIELDS) ? null : answer;
    this.showProblems();
  }

  /**
   * Say what became of the task to somebody who has left the form.
   * @param {import("../api.js").Result<any>} answer
   */
  async tell(answer) {
    if (!answer.ok && answer.aborted) return;
    const { toast } = await import("../dialog.js"); // loaded since the form was shown
    const go = (/** @type {string} */ label, /** @type {string} */ address) => ({ label, run: () => router.go(address) });
    if (answer.ok) toast("The task was started.", { action: go("Show it", api.taskPath(answer.value)) });
    else toast(api.explain(answer), { bad: true, action: go("Back to the form", `/new${this.search}`) });
  }

  showProblems() {
    this.draw();
    const first = /** @type {HTMLElement | null} */ (this.view.root.querySelector("[aria-invalid=true]"));
    if (first) first.closest("details")?.setAttribute("open", "");
    first?.focus();
  }

  draw() {
    if (this.view.signal.aborted) return;
    render(this.loaded ? this.form() : html`<h1>New task</h1><div class="card"><div class="loading"></div></div>`, this.view.root);
  }

  form() {
    if (this.loaded && !this.failed && !this.templates.length) {
      return html`<div class="card empty"><h1>There is no template yet</h1>
        <p>A template says which agent runs, and how. Whoever runs taskherd loads some with <code>taskherd directory apply</code>.</p></div>`;
    }
    const { fields, problems } = this;
    const size = new TextEncoder().encode(fields.prompt).length;
    const on = (/** @type {keyof Fields} */ name) => (/** @type {Event} */ event) =>
      this.set(name, /** @type {HTMLInputElement} */ (event.target).value);
    const problem = (/** @type {string} */ name) => (problems[name] ? html`<span class="problem" id="problem-${name}">${problems[name]}</span>` : nothing);
    return html`<form class="new-task" novalidate @submit=${(/** @type {SubmitEvent} */ event) => this.submit(event)}>
      <h1>New task</h1>
      ${this.gone ? html`<p class="notice bad" role="alert">${this.gone}</p>` : nothing}
      ${this.isForeign ? html`<p class="notice">A link has filled this form. Read it before you start the task.</p>` : nothing}
      ${this.missing ? html`<p class="notice bad" role="alert">There is no template <code>${this.missing}</code> that you may use. Choose another.</p>` : nothing}
      <label class="field"><span>Prompt</span>
        <textarea id="prompt" rows="9" dir="auto" placeholder="What is the agent to do, and how will you know that it is done?" .value=${live(fields.prompt)}
          aria-invalid=${problems.input ? "true" : nothing} aria-describedby=${problems.input ? "problem-input" : nothing} @input=${on("prompt")} @keydown=${submitOnEnter}></textarea>
        ${problem("input")}${size > MAX_PROMPT * 0.9 ? html`<small class=${size > MAX_PROMPT ? "problem" : ""}>${bytes(size)} of ${bytes(MAX_PROMPT)}</small>` : nothing}</label>
      ${this.templateField(on("template"))}
      ${this.presetsFailed ? html`<p class="notice bad" role="alert">The presets of the template could not be read. ${api.explain(this.presetsFailed)}
        <button type="button" class="link" @click=${() => { this.readPresets(); this.draw(); }}>Try again</button></p>` : nothing}
      ${this.presets.length ? html`<fieldset class="field"><legend>Preset</legend><div class="segments">
        ${this.presets.map((each) => html`<label title=${each.Parameters.map((/** @type {any} */ one) => `${one.Name}: ${one.Value}`).join("\n")}>
          <input type="radio" name="preset" value=${each.ID} .checked=${live(each.ID === fields.preset)} @change=${on("preset")}><span>${each.Name}</span></label>`)}</div></fieldset>` : nothing}
      <details class="more-fields" ?open=${Boolean(fields.display_name || fields.name || fields.labels)}><summary>Name and labels</summary><div class="more-grid">
        <label class="field"><span>Title</span><input id="display_name" type="text" dir="auto" maxlength="64" placeholder="from the prompt" .value=${live(fields.display_name)}
          aria-invalid=${problems.display_name ? "true" : nothing} aria-describedby=${problems.display_name ? "problem-display_name" : nothing} @input=${on("display_name")}>${problem("display_name")}</label>
        <label class="field"><span>Name</span><input id="name" type="text" maxlength="32" spellcheck="false" autocapitalize="none" placeholder="generated" .value=${live(fields.name)}
          aria-invalid=${problems.name ? "true" : nothing} aria-describedby=${problems.name ? "problem-name name-help" : "name-help"} @input=${on("name")}>${problem("name")}<small id="name-help">In addresses and commands: letters, digits, hyphens.</small></label>
        <label class="field wide-field"><span>Labels</span><textarea id="labels" class="mono" rows="2" spellcheck="false" placeholder="repo=acme/app" .value=${live(fields.labels)}
          aria-invalid=${problems.labels ? "true" : nothing} aria-describedby=${problems.labels ? "problem-labels" : nothing} @input=${on("labels")}></textarea>${problem("labels")}</label>
      </div></details>
      ${this.failed ? html`<div class="notice bad" role="alert"><b>${this.failed.message}</b>${this.failed.detail ? html`<br>${this.failed.detail}` : nothing}${this.templates.length ? nothing : html`
        <br><button type="button" class="link" @click=${() => this.readAgain()}>Try again</button>`}</div>` : nothing}
      <div class="acts"><span class="faint small keyboard"><kbd>Ctrl</kbd> <kbd>⏎</kbd></span>
        <button class="button go" ?disabled=${this.busy || !this.template || this.readingPresets || this.presetsFailed || size > MAX_PROMPT}>${this.busy ? "Starting…" : "Start task"}</button></div>
    </form>`;
  }

  /** @param {(event: Event) => void} on */
  templateField(on) {
    const many = new Set(this.templates.map((each) => each.organization_id)).size > 1;
    if (this.templates.length > MAX_CARDS) {
      return html`<label class="field"><span>Template</span><select @change=${on}>
        ${this.fields.template ? nothing : html`<option value="" selected>Choose…</option>`}
        ${this.templates.map((each) => html`<option value=${each.id} .selected=${each.id === this.fields.template}>${each.display_name || each.name}${many ? ` (${each.organization_display_name})` : ""}</option>`)}</select></label>`;
    }
    return html`<fieldset class="field"><legend>Template</legend><div class="choices">
      ${this.templates.map((each) => html`<label class="choice"><input type="radio" name="template" value=${each.id} .checked=${live(each.id === this.fields.template)} @change=${on}>
        <span><b dir="auto">${each.display_name || each.name}</b><small dir="auto">${many ? `${each.organization_display_name} · ` : ""}${each.description || each.name}</small></span></label>`)}</div></fieldset>`;
  }
}

/** The fields of the API whose problems the form shows beside them. */
const FIELDS = { input: 1, display_name: 1, name: 1, labels: 1 };

/**
 * @param {string} text
 * @returns {Record<string, string> | null}
 */
function parseLabels(text) {
  /** @type {Record<string, string>} */
  const labels = Object.create(null); // which has no names of its own, such as `__proto__`
  for (const line of text.split("\n").map((each) => each.trim()).filter(Boolean)) {
    const at = line.indexOf("=");
    if (at < 1) return null;
    labels[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return labels;
}
