# The service without a database: set DATABASE_URL (see compose.yaml).
FROM python:3.13-slim AS build
WORKDIR /app
RUN python -m venv /app/.venv
COPY requirements.lock .
RUN /app/.venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock

FROM python:3.13-slim
WORKDIR /app
RUN useradd --system --uid 900 --no-create-home service
COPY --from=build /app/.venv .venv
COPY service service
COPY sql sql
COPY migrations migrations
USER 900
ENV HOST=0.0.0.0 PORT=3000 PYTHONUNBUFFERED=1
EXPOSE 3000
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD [ \
    "/app/.venv/bin/python", "-c", \
    "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/readyz', timeout=2)"]
CMD ["/app/.venv/bin/python", "-m", "service", "serve"]
