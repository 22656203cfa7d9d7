-- Generates wrk's requests and prints its figures. There is no response() function, because it would cost
-- wrk a fifth of its rate; accepted writes are counted in the database. Settings are environment variables:
--   WORK           new: appointments that do not overlap; batch: ITEMS of them per request; storm: 40
--                  appointments compete for 40 slots; get: the same GET request every time
--   ITEMS          appointments per batch
--   ORGANISATIONS  number of organisations
--   RUN            a unique number up to 4,000, so that two runs share neither an id nor an interval
--   TARGET         path and query of the requests
local work = os.getenv("WORK")
local organisations = tonumber(os.getenv("ORGANISATIONS"))
local run = tonumber(os.getenv("RUN"))
local target = os.getenv("TARGET")
local items = tonumber(os.getenv("ITEMS"))
local sent = 0

local function instant(minutes)
    local days = math.floor(minutes / 1440)
    local year, day = 2000 + math.floor(days / 336), days % 336 -- months of 28 days
    return string.format("%04d-%02d-%02d %02d:%02d", year, math.floor(day / 28) + 1, day % 28 + 1,
        math.floor(minutes % 1440 / 60), minutes % 60)
end

local function payload(organisation, id, start, minutes, updated)
    return string.format(
        '{"id":"%d-%d","start":"%s","end":"%s","createdAt":"2000-01-01","updatedAt":"%s","orgId":"o-%d"}',
        run, id, instant(start), instant(start + minutes), instant(updated), organisation)
end

local function new()
    sent = sent + 1
    return payload(sent % organisations, sent, run * 1000000 + math.floor(sent / organisations) * 10, 10, 0)
end

local function post(body)
    return string.format(
        "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
        target, #body, body)
end

function request()
    if work == "get" then
        return string.format("GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", target)
    elseif work == "storm" then
        sent = sent + 1
        local start, minutes = math.random(40) * 30, math.random(2) * 30
        return post(payload(0, math.random(40), start, minutes, sent + math.random(1000)))
    elseif work == "batch" then
        local payloads = {}
        for item = 1, items do
            payloads[item] = new()
        end
        return post("[" .. table.concat(payloads, ",") .. "]")
    end
    return post(new())
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\n{"answers": %d, "refused": %d, "lost": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "max_ms": %f}\n',
        summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
        summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
