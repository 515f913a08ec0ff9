// @ts-check
// The rows of Home with what agents ask. Read when there are any: they need what the page of a task shows of a tool call.
import { inOrder } from "../answers.js";
import * as api from "../api.js";
import { dot, prose } from "../state.js";
import { rich } from "../task/text.js";
import { toolView } from "../task/tool-input.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { reply } from "./home-rows.js";

/**
 * A request of an agent, with the answers to choose from or a field for one.
 * @param {import("./home-rows.js").Rows} page
 * @param {any} request
 * @param {string} became
 */
export function requestRow(page, request, became) {
  const { id, options } = request;
  const task = { owner_name: request.owner_name, name: request.task_name };
  const path = api.taskPath(task);
  const answer = (/** @type {any} */ body, /** @type {string} */ said) =>
    page.act(id, "POST", `${path}/requests/${id}/answer`, body, said);
  const actions = options.length
    ? inOrder(options).map(({ option, isMain }) => html`<button class=${isMain ? "button go" : "button"} dir="auto"
        ?disabled=${page.busy.has(id)} @click=${() => answer({ option_id: option.id }, `${option.label}: sent to the agent`)}>${option.label}</button>`)
    : html`<button class="button" aria-expanded=${page.open.has(id)} @click=${() => page.toggle(id)}>Answer…</button>`;
  return html`<li class="need ask ${became ? "over" : ""}" data-id=${id} tabindex="-1">
    <div class="what"><p class="title">${dot({ word: "", color: "waiting", live: !became, says: "", since: "" })}<span dir="auto">${prose(request.title)}</span></p>
      <p class="sub"><a href=${path} dir="auto">${request.task_display_name || request.task_name}</a> · ${request.owner_name} · <bdi>${request.template_display_name || request.template_name}</bdi>
        · asked <time-ago at=${request.since}></time-ago>${request.expires_at ? html` · expires <time-ago at=${request.expires_at}></time-ago>` : nothing}</p>
      ${became ? nothing : html`<div class="about">${toolView(request.tool)}
        ${request.detail ? html`<details class="detail"><summary>Details</summary><div class="prose" dir="auto">${rich(request.detail)}</div></details>` : nothing}</div>`}</div>
    <div class="acts">${became ? html`<span class="soft" role="status">${became}</span>` : actions}</div>
    ${page.open.has(id) ? reply(page, id, "Your answer", (text) => answer({ text }, "Answered"), became) : nothing}
  </li>`;
}
