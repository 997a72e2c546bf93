// A client made with `@modelcontextprotocol/ext-tasks` over the TypeScript SDK 2; prints what it saw as one JSON object.
// Its first argument is the era of the protocol to speak, `legacy` or `modern`.

const path = require("node:path");
const { pathToFileURL } = require("node:url");

const [era, ...target] = process.argv.slice(2);
const seen = {};

// These packages are ES modules, which Node does not look for in NODE_PATH.
function load(module) {
  return import(pathToFileURL(path.join(process.env.NODE_PATH, "@modelcontextprotocol", module)).href);
}

// The SDK's client refuses results of type `task`, so ext-tasks has its host send what may have one past it.
function dispatchPast(transport) {
  const settles = new Map();
  let sent = 0;
  const forward = transport.onmessage;
  transport.onmessage = (message, extra) => {
    const settle = settles.get(message.id);
    if ("method" in message || !settle) {
      return forward(message, extra);
    }
    settles.delete(message.id);
    return settle(message.error ? { kind: "error", error: message.error } : { kind: "result", result: message.result });
  };
  return (request) =>
    new Promise((resolve, reject) => {
      sent += 1;
      const id = `past-${sent}`;
      settles.set(id, resolve);
      transport.send({ jsonrpc: "2.0", id, ...request }).catch(reject);
    });
}

async function converse(session) {
  seen.capabilities = session.capabilities;
  const follow = async (name, args = {}) => {
    const execution = await session.callTool(name, args, { task: { preference: "prefer" } });
    const { outcome } = await execution.settle();
    return [execution.kind, outcome.status, outcome.result?.content[0].text ?? outcome.error?.message];
  };
  seen.tool = await follow("counting", { steps: 3 });
  seen["without tasks"] = await follow("greet", { name: "Ada" });
  seen["tool error"] = await follow("refusing");
  seen["protocol error"] = await follow("protocol_error_job");
  seen.required = await follow("failing_job");
  seen.answered = await follow("confirm_delete", { filename: "a.txt" });
  const stopped = await session.callTool("counting", { steps: 500, pause: 0.05 }, { task: { preference: "prefer" } });
  await stopped.cancel();
  seen.cancelled = (await stopped.settle()).outcome.status;
}

async function main() {
  const { Client, StreamableHTTPClientTransport } = await load("client/dist/index.mjs");
  const { StdioClientTransport } = await load("client/dist/stdio.mjs");
  const tasks = await load("ext-tasks/dist/client/index.js");

  const info = { name: "ext-tasks", version: "1" };
  const capabilities = { elicitation: { form: {} } };
  const mode = era === "modern" ? { pin: "2026-07-28" } : "legacy";
  const client = new Client(info, { capabilities, versionNegotiation: { mode } });
  const transport = target[0].startsWith("http")
    ? new StreamableHTTPClientTransport(new URL(target[0]))
    : new StdioClientTransport({ command: target[0], args: target.slice(1), env: process.env });
  await client.connect(transport);
  const declarations = new Map((await client.listTools()).tools.map((tool) => [tool.name, tasks.toolDeclarationFromMcpTool(tool)]));
  seen.lists = ["counting", "refusing"].every((name) => declarations.has(name));
  const framing = { protocolVersion: "2026-07-28", clientInfo: info, clientCapabilities: capabilities };
  const session = tasks.createTaskSessionFromClient(client, {
    endpointId: "peer",
    tools: { currentTool: (name) => declarations.get(name) },
    onInputRequest: async (request) => {
      seen.asked = request.params.message;
      return { action: "accept", content: { confirm: true } };
    },
    ...(era === "modern" ? { rawDispatch: dispatchPast(transport), v2RequestFraming: framing } : {}),
  });
  await converse(session);
  await session.close();
  await client.close();
  console.log(JSON.stringify(seen));
}

main();
