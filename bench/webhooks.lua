-- For wrk: each request posts another webhook.
-- Arguments: a file with one template on each line, and the number of the first webhook.

local templates = {}
local number

function init(args)
  for line in io.lines(args[1]) do
    templates[#templates + 1] = line
  end
  number = tonumber(args[2])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  local id = string.format("%d", number)
  local body = string.format(templates[number % #templates + 1], id, id, id, id)
  number = number + 1
  return wrk.format(nil, nil, nil, body)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"p50":%.3f,"p99":%.3f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
