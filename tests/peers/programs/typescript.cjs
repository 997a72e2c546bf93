// A client made with the MCP TypeScript SDK 1 (`client.experimental.tasks`); prints what it saw as one JSON object.

const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
const {
  CallToolResultSchema,
  CreateTaskResultSchema,
  ElicitRequestSchema,
  GetPromptResultSchema,
  ReadResourceResultSchema,
  TaskStatusNotificationSchema,
} = require("@modelcontextprotocol/sdk/types.js");

const target = process.argv.slice(2);
const seen = {};
const pushed = new Map(); // the statuses that a task was said to have

function transport() {
  if (target[0].startsWith("http")) {
    return new StreamableHTTPClientTransport(new URL(target[0]));
  }
  return new StdioClientTransport({ command: target[0], args: target.slice(1), env: process.env });
}

// The SDK's own loop: it creates a task, polls it, answers what it asks, and reads its result.
async function follow(client, name, args, task) {
  const messages = [];
  const call = { name, arguments: args };
  for await (const message of client.experimental.tasks.callToolStream(call, CallToolResultSchema, { task })) {
    messages.push(message);
  }
  return messages;
}

async function create(client, method, params, task = {}) {
  return (await client.request({ method, params }, CreateTaskResultSchema, { task })).task;
}

async function codeOf(answer) {
  try {
    await answer;
    return null;
  } catch (error) {
    return error.code;
  }
}

async function until(happened) {
  while (!happened()) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function followATask(client) {
  const tasks = client.experimental.tasks;
  const messages = await follow(client, "counting", { steps: 3 }, { ttl: 30_000 });
  const { task } = messages[0];
  seen.created = [task.status, task.ttl];
  seen.polled = messages.filter((one) => one.type === "taskStatus").at(-1).task.status;
  const { result } = messages.at(-1);
  seen.result = [result.content[0].text, result._meta["io.modelcontextprotocol/related-task"].taskId === task.taskId];
  seen.got = (await tasks.getTask(task.taskId)).status;
  seen.listed = (await tasks.listTasks()).tasks.some((one) => one.taskId === task.taskId);
  await until(() => pushed.get(task.taskId)?.includes("completed"));
  seen.pushed = pushed.get(task.taskId).at(-1);
  const asking = await follow(client, "confirm_delete", { filename: "a.txt" }, {});
  seen["while it asks"] = asking.filter((one) => one.type === "taskStatus").at(-1).task.status;
  seen.answered = asking.at(-1).result.content[0].text;
}

async function endBadly(client) {
  const tasks = client.experimental.tasks;
  const stopped = await create(client, "tools/call", { name: "counting", arguments: { steps: 500, pause: 0.05 } });
  seen.cancelled = (await tasks.cancelTask(stopped.taskId)).status;
  seen["result of the cancelled"] = await codeOf(tasks.getTaskResult(stopped.taskId, CallToolResultSchema));
  seen.forbidden = await codeOf(create(client, "tools/call", { name: "greet", arguments: { name: "Ada" } }));
  seen.required = await codeOf(client.request({ method: "tools/call", params: { name: "failing_job" } }, CallToolResultSchema));
  const refused = await create(client, "tools/call", { name: "refusing" });
  seen["tool error"] = (await tasks.getTaskResult(refused.taskId, CallToolResultSchema)).isError;
  const broken = await create(client, "tools/call", { name: "protocol_error_job" });
  seen["protocol error"] = await codeOf(tasks.getTaskResult(broken.taskId, CallToolResultSchema));
}

async function askForMore(client) {
  const tasks = client.experimental.tasks;
  const call = { name: "slow_compute", arguments: { seconds: 0 } };
  seen["in the foreground"] = (await client.request({ method: "tools/call", params: call }, CallToolResultSchema)).content[0].text;
  const prompt = await create(client, "prompts/get", { name: "briefing", arguments: { topic: "tides" } });
  seen["prompts/get"] = (await tasks.getTaskResult(prompt.taskId, GetPromptResultSchema)).messages[0].content.text;
  const resource = await create(client, "resources/read", { uri: "fixture://report" });
  seen["resources/read"] = (await tasks.getTaskResult(resource.taskId, ReadResourceResultSchema)).contents[0].text;
}

async function main() {
  const client = new Client({ name: "typescript", version: "1" }, { capabilities: { elicitation: { form: {} } } });
  client.setNotificationHandler(TaskStatusNotificationSchema, ({ params }) => {
    pushed.set(params.taskId, [...(pushed.get(params.taskId) ?? []), params.status]);
  });
  client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
    seen.asked = [params.message, params._meta !== undefined];
    return { action: "accept", content: { confirm: true } };
  });
  await client.connect(transport());
  const tools = (await client.listTools()).tools;
  const support = Object.fromEntries(tools.map((tool) => [tool.name, tool.execution?.taskSupport ?? null]));
  seen.support = [support.slow_compute, support.failing_job, support.greet];
  seen.capability = client.getServerCapabilities().tasks.requests.tools;
  await followATask(client);
  await endBadly(client);
  await askForMore(client);
  await client.close();
  console.log(JSON.stringify(seen));
}

main();
