package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// local refuses requests for any host but a loopback address, by which a page on the web whose name
// leads here would come. The page from here sends none across origins.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			respond(w, http.StatusMisdirectedRequest, "this API is for loopback addresses only")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// sameOrigin refuses what a page of another origin has a browser send, GETs too: the standard library lets those pass,
// but here each is an entry of raft's log. The documents for relying parties are for everybody, and the page alone
// says nothing.
func sameOrigin(next http.Handler) http.Handler {
	p := http.NewCrossOriginProtection()
	p.AddInsecureBypassPattern("/.well-known/")
	p.AddInsecureBypassPattern("/{$}")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		asUnsafe := r.WithContext(r.Context()) // a copy
		asUnsafe.Method = http.MethodPost
		if p.Check(asUnsafe) != nil {
			respond(w, http.StatusForbidden, "cross-origin request: a page of another origin has sent it")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// actor is who the audit log says has asked.
func actor(r *http.Request) string {
	if r.Header.Get("Sec-Fetch-Site") != "" { // only browsers send it
		return "page"
	}
	return "api"
}

// respond answers with an error.
func respond(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": text})
}

// parameters checks that a request has no parameters but these, and each once: one that is mistyped would else be
// ignored.
func parameters(r *http.Request, names []string) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest{fmt.Errorf("the query: %w", err)}
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return badRequest{fmt.Errorf("this request takes no parameter %q", name)}
		}
		if len(values) > 1 {
			return badRequest{fmt.Errorf("the parameter %q occurs %d times", name, len(values))}
		}
	}
	return nil
}

// flagOf is a parameter that is true or false: ?force and ?force=true are true, ?force=false and none are false.
func flagOf(r *http.Request, name string) (bool, error) {
	q := r.URL.Query()
	if !q.Has(name) || q.Get(name) == "" {
		return q.Has(name), nil
	}
	value, err := strconv.ParseBool(q.Get(name))
	if err != nil {
		return false, badRequest{fmt.Errorf("the parameter %q must be true or false, not %q", name, q.Get(name))}
	}
	return value, nil
}

// read decodes a request's body: one JSON object in UTF-8, and nothing after it. It refuses what encoding/json would
// change, as half of a surrogate pair: what is stored is what was sent.
func read(r *http.Request, v any) error {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = decode(b, v)
	}
	if err != nil {
		return badRequest{fmt.Errorf("the body: %w", err)}
	}
	return nil
}

func decode(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New("it is not UTF-8")
	}
	if !bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) {
		return errors.New("it is no JSON object")
	}
	in := json.NewDecoder(bytes.NewReader(b))
	in.DisallowUnknownFields()
	if err := in.Decode(v); err != nil {
		return err
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the object")
	}
	return unambiguous(b)
}

// unambiguous refuses a JSON object that has a member twice, in whatever case, or half of a surrogate pair.
func unambiguous(b []byte) error {
	if halfPair(b) {
		return errors.New("it has half of a surrogate pair")
	}
	in, seen := json.NewDecoder(bytes.NewReader(b)), map[string]bool{}
	in.Token() // {
	for in.More() {
		name, err := in.Token()
		if err != nil {
			return err
		}
		folded := strings.ToLower(name.(string))
		if seen[folded] {
			return fmt.Errorf("it has %q twice", name)
		}
		seen[folded] = true
		if err := in.Decode(new(json.RawMessage)); err != nil {
			return err
		}
	}
	return nil
}

// halfPair reports whether valid JSON escapes half of a surrogate pair.
func halfPair(b []byte) bool {
	unit := func(b []byte) rune {
		if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
			return 0
		}
		n, _ := strconv.ParseUint(string(b[2:6]), 16, 16)
		return rune(n)
	}
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		switch first := unit(b[i:]); {
		case !utf16.IsSurrogate(first):
			i++ // what is escaped
		case utf16.DecodeRune(first, unit(b[i+6:])) == utf8.RuneError:
			return true
		default:
			i += 11
		}
	}
	return false
}
