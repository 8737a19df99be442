package admin

import (
	"embed"
	"net/http"
)

//go:embed page.html page.css page.js
var page embed.FS

// servePage serves the page: it asks for what it shows, so these files are the same on every server.
func servePage(mux *http.ServeMux) {
	file := func(name, contentType string) http.HandlerFunc {
		content, err := page.ReadFile(name)
		if err != nil {
			panic(err) // it is embedded
		}
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "+
				"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")
			send(w, http.StatusOK, contentType, content)
		}
	}
	mux.HandleFunc("GET /{$}", file("page.html", "text/html; charset=utf-8"))
	mux.HandleFunc("GET /page.css", file("page.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /page.js", file("page.js", "text/javascript; charset=utf-8"))
}
