-- What wrk sends and how it reports. Called with one argument, the bytes of a POST body (0: a GET).

function init(args)
  local size = tonumber(args[1])
  if size > 0 then
    wrk.method = "POST"
    wrk.body = string.rep("x", size)
  end
end

-- One line of JSON as the last line of output, read by load.py. Times in microseconds.
-- wrk counts a status above 399 as an error, and 3xx as good; process.py has checked for 200 before.
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "duration": %d, "p50": %d, "p99": %d, "errors": ' ..
    '{"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
