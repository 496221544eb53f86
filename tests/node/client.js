// A client in another language, from the .proto files alone.
//
//   node client.js PROTO_DIR HOST:PORT subscribe COUNT [RESUME_TOKEN]
//   node client.js PROTO_DIR HOST:PORT latest SITE/CAMERA
//
// Prints one JSON object a line: {"stands":true} when the subscription stands, results, and on a failure
// {"error":STATUS_NAME,"message":...} with exit status 1; a gap adds what the server says of it.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [protoDir, address, command, argument, resumeToken] = process.argv.slice(2);
const definition = loader.loadSync(path.join("eyeline", "v1", "result.proto"), {
  includeDirs: [protoDir],
  keepCase: true,
  longs: String, // nanoseconds do not fit a double
  enums: String,
  defaults: true,
  oneofs: true,
});
const { eyeline } = grpc.loadPackageDefinition(definition);
const client = new eyeline.v1.Results(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
if (process.env.EYELINE_TOKEN) metadata.set("authorization", `Bearer ${process.env.EYELINE_TOKEN}`);

function print(value) {
  process.stdout.write(JSON.stringify(value) + "\n");
}

function printResult(result) {
  print({
    camera: `${result.key.site}/${result.key.camera}`,
    sequence: result.key.sequence,
    last_sequence: result.last_sequence,
    final: result.final,
    provenance: result.provenance,
    captured_ns: result.times ? result.times.captured_ns : "0",
    classes: result.detections.map((detection) => detection.class_name),
    boxes: result.detections.map(({ box }) => [box.x1_px, box.y1_px, box.x2_px, box.y2_px]),
    resume_token: result.resume_token,
  });
}

// google.rpc.Status { details = 3: google.protobuf.Any { type_url = 1, value = 2 } } around our ResumeGap,
// read by hand: three nested messages whose fields are length-delimited or varints.
function readFields(buffer) {
  const fields = {};
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = BigInt(buffer[at++]);
      value |= (byte & 127n) << shift;
      if (byte < 128n) return value;
    }
  };
  while (at < buffer.length) {
    const tag = Number(varint());
    if ((tag & 7) === 0) {
      fields[tag >> 3] = varint();
    } else {
      const length = Number(varint());
      fields[tag >> 3] = buffer.subarray(at, at + length);
      at += length;
    }
  }
  return fields;
}

function gapOf(error) {
  const [status] = error.metadata ? error.metadata.get("grpc-status-details-bin") : [];
  if (!status) return {};
  const packed = readFields(status)[3];
  if (!packed) return {};
  const detail = readFields(packed);
  if (!detail[1].toString().endsWith("/eyeline.v1.ResumeGap")) return {};
  const gap = readFields(detail[2]);
  return { oldest_time_ns: String(gap[2] ?? 0n), missing_messages: String(gap[3] ?? 0n) };
}

function fail(error) {
  print({ error: grpc.status[error.code], message: error.details, ...gapOf(error) });
  process.exitCode = 1;
  client.close();
}

if (command === "latest") {
  const [site, camera] = argument.split("/");
  const deadline = new Date(Date.now() + 10_000);
  client.getLatest({ cameras: [{ site, camera }] }, metadata, { deadline }, (error, response) => {
    if (error) return fail(error);
    response.results.forEach(printResult);
    client.close();
  });
} else {
  let left = Number(argument);
  const request = resumeToken ? { resume_token: resumeToken } : {};
  const call = client.subscribe(request, metadata);
  call.on("data", (response) => {
    if (response.results.length === 0) print({ stands: true });
    for (const result of response.results) {
      if (left-- > 0) printResult(result);
    }
    if (left <= 0) call.cancel();
  });
  call.on("error", (error) => {
    if (error.code === grpc.status.CANCELLED && left <= 0) client.close();
    else fail(error);
  });
}
