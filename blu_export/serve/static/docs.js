// Renders /openapi.json: what there is, what it takes, what it answers.

const make = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });
const main = document.getElementById("docs"), example = main.querySelector("pre");
example.textContent = example.textContent.replaceAll("ORIGIN", location.origin);

function describe({ in: place, description = "", schema = {} }) {
  const range = "minimum" in schema ? ` ${schema.minimum} to ${schema.maximum}` : "";
  const kind = schema.enum ? schema.enum.join(", ") : `${schema.type}${range}`;
  return `${place}: ${kind}. ${description}${schema.default ? ` Default: ${schema.default}.` : ""}`;
}

const api = await (await fetch("/openapi.json")).json();
let group = null;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const tag = operation.tags?.[0] ?? "";
    if (tag !== group) main.append(make("h2", (group = tag)));
    const article = make("article"), title = make("h3");
    title.append(make("code", `${method.toUpperCase()} ${path}`));
    article.append(title, make("div", [operation.summary, operation.description].filter(Boolean).join(". ")));
    const rows = (operation.parameters ?? []).map((each) => [each.name, describe(each)]);
    for (const type of Object.keys(operation.requestBody?.content ?? {})) rows.push(["body", type]);
    for (const [status, answer] of Object.entries(operation.responses ?? {})) {
      rows.push([status, `${answer.description} ${Object.keys(answer.content ?? {}).join(", ")}`]);
    }
    const table = make("table");
    for (const row of rows) {
      const line = make("tr");
      line.append(...row.map((text) => make("td", text)));
      table.append(line);
    }
    article.append(table);
    const sample = operation.responses?.["200"]?.content?.["application/json"]?.example;
    if (sample) article.append(make("pre", JSON.stringify(sample, null, 1)));
    main.append(article);
  }
}
