// Large results of tasks in a client made with the MCP TypeScript SDK; prints what arrived as one JSON object.
//
// Its arguments: a JSON object with the results' `sizes` in bytes, and the `stdio` transport's options; and the server.

const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
const { CallToolResultSchema } = require("@modelcontextprotocol/sdk/types.js");

const [{ sizes, stdio }, ...target] = [JSON.parse(process.argv[2]), ...process.argv.slice(3)];

function transport() {
  if (target[0].startsWith("http")) {
    return new StreamableHTTPClientTransport(new URL(target[0]));
  }
  return new StdioClientTransport({ command: target[0], args: target.slice(1), env: process.env, ...stdio });
}

async function ask(client, size) {
  const call = { name: "large", arguments: { result_bytes: size } };
  const options = { task: {}, timeout: 300_000 };
  for await (const message of client.experimental.tasks.callToolStream(call, CallToolResultSchema, options)) {
    if (message.type === "result") {
      return [message.result.content[0].text.length, message.result.structuredContent.result.length];
    }
    if (message.type === "error") {
      return String(message.error);
    }
  }
}

async function main() {
  const seen = { problems: [] };
  let client;
  for (const size of sizes) {
    if (client === undefined) {
      client = new Client({ name: "large", version: "1" });
      client.onerror = (error) => seen.problems.push(error.message);
      client.onclose = () => { client = undefined; }; // what is too large on stdio ends the connection
      await client.connect(transport());
    }
    seen[size] = await ask(client, size);
  }
  await client?.close();
  console.log(JSON.stringify(seen));
}

main();
