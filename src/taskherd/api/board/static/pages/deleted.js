// @ts-check
// Deleted tasks, last deleted first, and who deleted each; a task stays here until its contents are erased.
import * as api from "../api.js";
import { html, render } from "../vendor/lit-html/lit-html.js";
import "../format.js";

/** @type {import("../router.js").Page} */
export default function deleted(view) {
  const { root, signal } = view;
  view.setTitle("Deleted tasks");
  const read = async () => {
    const q = view.query.get("q");
    const answer = await api.get(`/deleted-tasks${q ? `?q=${encodeURIComponent(q)}` : ""}`, { signal, cached: false });
    if (signal.aborted) return;
    render(html`<div class="head"><h1>Deleted tasks</h1><a class="link small right" href="/tasks">All tasks</a></div>
      ${answer.ok ? list(answer.value.tasks) : html`<p class="notice bad" role="alert">${api.explain(answer)}</p>`}`, root);
    view.shown();
  };
  render(html`<div class="head"><h1>Deleted tasks</h1></div><div class="card rows" aria-busy="true"><div class="loading"></div></div>`, root);
  read();
  document.addEventListener("visibilitychange", () => document.hidden || read(), { signal });
}

/** @param {any[]} tasks */
function list(tasks) {
  if (!tasks.length) {
    return html`<div class="card empty"><h2>No deleted tasks</h2><p>A task that is deleted is listed here, with who deleted it, until its contents are erased.</p></div>`;
  }
  return html`<ul class="card lines deleted">${tasks.map((each) => html`<li>
    <span class="name truncate" title=${each.name}>${each.display_name || each.name}</span>
    <span class="says">Deleted by <b>${each.deleted_by || "an unknown person"}</b> <time-ago at=${each.deleted_at}></time-ago></span>
    <span class="where truncate faint">${each.template_display_name || each.template_name}</span>
    <span class="truncate faint" title="Owner">${each.owner_name}</span>
  </li>`)}</ul>`;
}
