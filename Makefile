# What `sam build` calls for the layer, in a copy of templates/.
build-TemplatesLayer:
	mkdir -p "$${ARTIFACTS_DIR:?is set by sam build}/templates"
	cp -R . "$$ARTIFACTS_DIR/templates"

.PHONY: build-TemplatesLayer
