// The chosen theme, before the first paint: modules run only after it.
try {
  document.documentElement.dataset.theme = localStorage.getItem("qwench.theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto"; // this browser keeps nothing
}
