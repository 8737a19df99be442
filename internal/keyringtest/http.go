package keyringtest

// Requests to an http.Handler, without a connection.

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
)

// JWKSPath is where WellKnown serves the JWKS.
const JWKSPath = "/.well-known/jwks.json"

// Request returns a handler's response. header has names and values in turn.
func Request(h http.Handler, method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// Body is what a response says.
func Body(t testing.TB, r *http.Response) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
