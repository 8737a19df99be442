package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/keyring/internal/bounded"
)

const (
	maxBody    = 64 << 10
	bodyTime   = 10 * time.Second // for a body to come
	answerTime = 30 * time.Second // for an answer to be taken
)

// crossOrigin refuses what a page of another origin has a browser send. The page alone says nothing, and
// links to it work.
var crossOrigin = func() *http.CrossOriginProtection {
	p := http.NewCrossOriginProtection()
	p.AddInsecureBypassPattern("/{$}")
	return p
}()

// asUnsafe is a request as a POST: the standard library lets GETs of other origins pass, but what they read
// here is for nobody else, and costs what it costs.
func asUnsafe(r *http.Request) *http.Request {
	as := r.WithContext(r.Context()) // a copy
	as.Method = http.MethodPost
	return as
}

// protect sets the headers that every answer has.
func protect(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Frame-Options", "DENY") // for what does not know frame-ancestors
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
}

// cleanPath reports whether a path is taken as it is. http.ServeMux would redirect others, to where no prefix
// leads. An element may have escaped slashes: those of an ID.
func cleanPath(u *url.URL) bool {
	escaped := u.EscapedPath()
	return strings.HasPrefix(escaped, "/") && path.Clean(escaped) == escaped
}

// byBrowser reports whether a browser sends a request: nothing else sends these headers. Over plain http to a
// name that is no loopback address a browser sends Origin alone, and that not with a GET.
func byBrowser(r *http.Request) bool {
	return r.Header.Get("Sec-Fetch-Site") != "" || r.Header.Get("Origin") != ""
}

// changes reports whether a request may change something.
func changes(r *http.Request) bool { return r.Method != http.MethodGet && r.Method != http.MethodHead }

// orNothing answers with an error in JSON, as everywhere, where mux has no handler.
func orNothing(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		silent := &statusOnly{header: http.Header{}}
		h.ServeHTTP(silent, r)
		status := silent.status
		if status < http.StatusBadRequest {
			status = http.StatusNotFound
		}
		if allow := silent.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
		}
		respond(w, status, fmt.Sprintf("this API has no %.20s %.200s", r.Method, r.URL.Path))
	})
}

// statusOnly is a ResponseWriter that keeps the status.
type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header         { return s.header }
func (s *statusOnly) Write(b []byte) (int, error) { return len(b), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

// begunWriter knows whether anything was written, and with which status.
type begunWriter struct {
	http.ResponseWriter
	begun  bool
	status int
}

func (b *begunWriter) WriteHeader(status int) {
	b.begun, b.status = true, status
	b.ResponseWriter.WriteHeader(status)
}

func (b *begunWriter) Write(p []byte) (int, error) {
	if !b.begun {
		b.begun, b.status = true, http.StatusOK
	}
	return b.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (b *begunWriter) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// send sends an answer, and gives its client answerTime to take it. For what comes next on the connection
// net/http sets the host's own deadline again.
func send(w http.ResponseWriter, status int, contentType string, body []byte) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)) // an error means that there is none, as in tests
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// sendJSON sends a value.
func sendJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type of this package
	}
	send(w, status, "application/json", append(b, '\n'))
}

// respond answers with an error.
func respond(w http.ResponseWriter, status int, text string) {
	sendJSON(w, status, errorAnswer{Error: text})
}

// errorAnswer is the body of an answer that is an error.
type errorAnswer struct {
	Error string `json:"error"`
}

// parameters checks that a request has no parameters but these, and each once: one that is mistyped would
// else be ignored.
func parameters(r *http.Request, names []string) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest{fmt.Errorf("the query: %w", err)}
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return badRequest{fmt.Errorf("this request takes no parameter %.100q", name)}
		}
		if len(values) > 1 {
			return badRequest{fmt.Errorf("the parameter %q occurs %d times", name, len(values))}
		}
	}
	return nil
}

// flagOf is a parameter that is true or false: ?force and ?force=true are true, ?force=false and none are
// false.
func flagOf(r *http.Request, name string) (bool, error) {
	q := r.URL.Query()
	if !q.Has(name) || q.Get(name) == "" {
		return q.Has(name), nil
	}
	value, err := strconv.ParseBool(q.Get(name))
	if err != nil {
		return false, badRequest{fmt.Errorf("the parameter %q must be true or false, not %.100q", name, q.Get(name))}
	}
	return value, nil
}

// readBody reads a request's body, which has to be there within bodyTime, before anything is done. Later the
// server has to see when the client ends the request, so there is no deadline then.
func readBody(w http.ResponseWriter, r *http.Request) error {
	conn := http.NewResponseController(w)
	conn.SetReadDeadline(time.Now().Add(bodyTime)) // an error means that there is none, as in tests
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if errors.As(err, new(*http.MaxBytesError)) {
			return tooLarge{err}
		}
		return badRequest{fmt.Errorf("the body: %w", err)}
	}
	conn.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(b))
	return nil
}

// decode decodes a body that readBody has read: one JSON object, without what another reader could understand
// in another way.
func decode[T any](r *http.Request, t bounded.Type[T]) (v T, err error) {
	b, err := io.ReadAll(r.Body)
	if err == nil && !bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) {
		err = errors.New("it is no JSON object")
	}
	if err == nil {
		v, err = t.Decode(b)
	}
	if err != nil {
		return v, badRequest{fmt.Errorf("the body: %w", err)}
	}
	return v, nil
}
