// Loaded as a blocking script before all modules, so it stays this small: it applies the chosen colour scheme before the
// first paint, and asks for what Home reads first while its scripts are still on their way. `api.js` takes the answers.
(() => {
  const theme = localStorage.getItem("taskherd-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;

  const token = sessionStorage.getItem("taskherd-token");
  if (!token || location.pathname !== "/") return;
  const terms = localStorage.getItem("taskherd-home-scope") === "everyone" ? "" : "owner:me";
  const begun = (window.taskherdBegun = new Map());
  for (const path of ["/users/me", `/task-overview${terms && `?q=${encodeURIComponent(terms)}`}`]) {
    const stop = new AbortController();
    const headers = { Accept: "application/json", "Coder-Session-Token": token };
    const options = { headers, signal: stop.signal, cache: "no-store", credentials: "omit", redirect: "error" };
    const answer = fetch(`/api/v2${path}`, options).then(async (response) => ({ response, text: await response.text() }));
    answer.catch(() => {}); // who takes it is told
    begun.set(path, { answer, stop, token });
  }
})();
