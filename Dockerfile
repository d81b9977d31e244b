FROM node:24-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts
COPY tsconfig.json ./
COPY src ./src
RUN npm run build

FROM node:24-bookworm-slim
LABEL org.opencontainers.image.title="Postern" \
      org.opencontainers.image.description="JSON over mutual TLS in, mail out: the one small door in front of an SMTP server." \
      org.opencontainers.image.licenses="MIT"
ENV NODE_ENV=production
WORKDIR /app
COPY package.json package-lock.json ./
# Types and source maps are for those who build: more than a quarter of what npm brings.
RUN npm ci --omit=dev --ignore-scripts && npm cache clean --force && \
    find node_modules -type f \( -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' -o -name '*.map' \) -delete
COPY --from=build /app/dist ./dist
# Certificates and the clients file are mounted at /app/certs: the image holds no secret, and nothing in it is written to.
USER node
EXPOSE 8443
# The start period covers a relay that comes up together with the gateway.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["node", "dist/cli.js", "health"]
ENTRYPOINT ["node", "dist/cli.js"]
CMD ["serve"]
