// The command lines of MCP Inspector 2: `mcp-inspector --cli`, a process for each call, and `mcpdo`, whose daemon holds
// a connection. Prints what they saw as one JSON object. Its first argument is the era of the protocol to speak.

const { spawnSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const [era, ...target] = process.argv.slice(2);
const inspector = path.join(process.env.NODE_PATH, "@modelcontextprotocol/inspector/clients");
const home = fs.mkdtempSync(path.join(os.tmpdir(), "inspector-"));
const config = path.join(home, "mcp.json");
const env = {
  ...process.env,
  HOME: home,
  MCP_INSPECTOR_DAEMON_DIR: path.join(home, "daemon"),
  MCP_INSPECTOR_DAEMON_TOKEN: "a-token-of-this-run-alone",
  MCP_INSPECTOR_SECRET_STORE: "file",
};

function command(script, argv) {
  const done = spawnSync(process.execPath, [path.join(inspector, script), ...argv], { env, encoding: "utf8" });
  const [output, errors] = [done.stdout.trim(), done.stderr.trim()];
  // What a command says on standard error ends with its error, if it has one.
  return output ? JSON.parse(output) : JSON.parse(errors.split("\n").at(-1));
}

function once(...argv) {
  const where = ["--cli", "--config", config, "--server", "peer", "--protocol-era", era];
  return command("launcher/build/index.js", [...where, "--format", "json", "--quiet", ...argv]);
}

function call(name, args = {}) {
  return once("--method", "tools/call", "--tool-name", name, "--tool-args-json", JSON.stringify(args));
}

function held(...argv) {
  return command("mcpdo/build/mcp-bin.js", ["--format", "json", "--connection", "peer", ...argv]);
}

// The text of a result, and else the message of the error that is there instead.
function textOf(answer) {
  const result = answer.result ?? answer;
  return result.content?.[0].text ?? answer.error.message;
}

function callOnce() {
  const names = once("--method", "tools/list").result.tools.map((tool) => tool.name);
  return {
    lists: ["counting", "refusing"].every((name) => names.includes(name)),
    "ran as a task": call("whereabouts").result.structuredContent.job !== null,
    tool: textOf(call("counting", { steps: 3 })),
    "tool error": textOf(call("refusing")),
    required: textOf(call("failing_job")),
    answered: textOf(call("confirm_delete", { filename: "a.txt" })),
  };
}

function holdAConnection() {
  const seen = { era: held("connect", "peer", "--config", config, "--era", era).protocolEra };
  const names = held("tools/list").tools.map((tool) => tool.name);
  seen.lists = ["counting", "refusing"].every((name) => names.includes(name));
  // The option asks a server of 2025-11-25 for a task; one of 2026-07-28 decides that itself.
  const where = held("tools/call", "whereabouts", "--task");
  seen["ran as a task"] = where.structuredContent.job !== null;
  seen.tool = textOf(held("tools/call", "counting", "steps:=3", "--task"));
  seen["tool error"] = textOf(held("tools/call", "refusing", "--task"));
  seen.required = textOf(held("tools/call", "failing_job"));
  seen.listed = held("tasks/list").tasks.length;
  // The question ends this command; the call goes on in the daemon.
  const { elicitationPending } = held("tools/call", "confirm_delete", "filename:=a.txt", "--task");
  seen.asked = [elicitationPending.message, elicitationPending.origin];
  seen.answered = textOf(held("elicitation/respond", elicitationPending.elicitationId, "confirm:=true"));
  return seen;
}

async function main() {
  const entry = target[0].startsWith("http")
    ? { type: "streamable-http", url: target[0] }
    : { type: "stdio", command: target[0], args: target.slice(1), env: process.env };
  fs.writeFileSync(config, JSON.stringify({ mcpServers: { peer: entry } }));
  try {
    console.log(JSON.stringify({ "one call": callOnce(), "a connection": holdAConnection() }));
  } finally {
    const { pid } = held("daemon", "status");
    held("daemon", "stop");
    while (isRunning(pid)) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    fs.rmSync(home, { recursive: true, force: true });
  }
}

function isRunning(pid) {
  try {
    return pid !== undefined && process.kill(pid, 0);
  } catch {
    return false;
  }
}

main();
