// @ts-check
// The pages. `src/taskherd/api/board/routes.py` has the same paths, and which module to load early for each.

/**
 * @typedef {{name: string, pattern: RegExp, load: () => Promise<any>, nav?: {label: string, href: string, key: string}}} Route
 */

/** @type {Route[]} */
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
