// A file of its own, since the page's Content-Security-Policy lets no inline script run.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // by default the document would be shown to a validator on the internet
});
