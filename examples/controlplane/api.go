package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"example.com/keyring"
	"example.com/keyring/records"
)

const (
	maxValue = 64 << 10 // bytes of a secret
	maxBody  = 1 << 20
	maxTTL   = time.Hour      // of a token
	audience = "controlplane" // of the tokens that this API itself takes
	subject  = "workload/"    // and a workload's name is the sub of its tokens
)

// entry is a secret as the API has it. Its value is text.
type entry struct {
	Path    string `json:"path"`
	Version uint64 `json:"version,omitempty"`
	Key     string `json:"key,omitempty"` // the ID of the key that it is sealed under
	Value   string `json:"value,omitempty"`
}

// putRequest is what is put. With If, only in place of that version; zero is none.
type putRequest struct {
	Value string  `json:"value"`
	If    *uint64 `json:"if,omitempty"`
}

// identityRequest asks for a token for a workload.
type identityRequest struct {
	Audience []string `json:"audience,omitempty"` // empty: this API
	TTL      string   `json:"ttl,omitempty"`      // as 10m; empty: the longest
}

// handler is the whole API: that of secrets and identities, and that of package admin.
//
// Whatever needs the leader is answered by a follower with a redirect to it, or the node asks the
// leader by itself. What came of a request whose status is 500 is not known. One that is redirected,
// or has 503, may be sent again: it has had no effect, or none that is had twice, as the removal of a
// key. A secret is 410 for as long as it is sealed under a key that was removed by force.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/secrets/{path...}", s.serve(s.people(s.put)))
	mux.HandleFunc("GET /v1/secrets/{path...}", s.serve(s.get, "stale"))
	mux.HandleFunc("GET /v1/secrets", s.serve(s.people(s.list), "prefix", "stale"))
	mux.HandleFunc("POST /v1/identities/{workload}", s.serve(s.people(s.identity)))
	mux.HandleFunc("GET /v1/whoami", s.serve(s.whoami))
	mux.HandleFunc("GET /v1/status", s.serve(s.people(s.status), "consistent"))
	mux.HandleFunc("GET /v1/watch", s.watch)
	mux.HandleFunc("/", s.operators)
	mux.HandleFunc("/.well-known/", func(w http.ResponseWriter, r *http.Request) {
		if err := s.ready(); err != nil {
			fail(w, err)
			return
		}
		s.node.Keyring().WellKnownFor(s.cluster.issuerAt(r.Host)).ServeHTTP(w, r)
	})
	return local(sameOrigin(mux))
}

// errStarting is while the node has not started.
var errStarting = fmt.Errorf("%w: the server is starting", keyring.ErrNotReady)

func (s *server) ready() error {
	select {
	case <-s.started:
		return nil
	default:
		return errStarting
	}
}

// serve makes a handler of a function that returns what to answer with. The request may have these parameters.
func (s *server) serve(answer func(*http.Request) (any, error), names ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := s.ready()
		var body any
		if err == nil {
			err = parameters(r, names)
		}
		if err == nil {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			body, err = answer(r)
		}
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(body)
	}
}

// refuse answers with an error, or sends the request on to the leader.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var elsewhere keyring.NotLeaderError
	// What may have been stored must not go to another leader by itself: somebody else's put may have come between.
	if errors.As(err, &elsewhere) && !errors.Is(err, records.ErrUncertain) && s.cluster.Servers[elsewhere.Leader].HTTP != "" && elsewhere.Leader != s.id {
		http.Redirect(w, r, "http://"+s.cluster.Servers[elsewhere.Leader].HTTP+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		return
	}
	fail(w, err)
}

// unknown is an error after which the request may have had an effect.
type unknown struct{ error }

// badRequest is an error of the one who asked.
type badRequest struct{ error }

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.As(err, new(unknown)), errors.Is(err, records.ErrUncertain):
	case errors.As(err, new(badRequest)), errors.Is(err, keyring.ErrUnknownKey):
		status = http.StatusBadRequest
	case errors.Is(err, records.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, errGone):
		status = http.StatusGone
	case errors.Is(err, records.ErrVersion):
		status = http.StatusConflict
	case errors.Is(err, errForbidden):
		status = http.StatusForbidden
	case errors.Is(err, keyring.ErrToken):
		status = http.StatusUnauthorized
	case errors.Is(err, keyring.ErrNotLeader), errors.Is(err, keyring.ErrNoLeader), errors.Is(err, keyring.ErrNotReady), errors.Is(err, keyring.ErrKeyMissing):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	text := err.Error()
	if errors.Is(err, keyring.ErrNoLeader) {
		text += ". First check with controlplane keys status, asked at the other servers, whether they have a leader: then never recover this one. " +
			"Otherwise start the servers that are down. Only if most of them are gone for good, stop the one that is left and call controlplane recover"
	}
	respond(w, status, text)
}

// put seals a secret and stores it, on the leader.
func (s *server) put(r *http.Request) (any, error) {
	path, err := secretPath(r.PathValue("path"))
	if err != nil {
		return nil, err
	}
	var in struct {
		putRequest
		Value *string `json:"value"` // without one nothing is stored, and with an empty one an empty secret
	}
	if err := read(r, &in); err != nil {
		return nil, err
	}
	if in.Value == nil {
		return nil, badRequest{errors.New("the body has no value")}
	}
	if len(*in.Value) > maxValue {
		return nil, badRequest{fmt.Errorf("a secret has at most %d bytes", maxValue)}
	}
	version, err := s.store.Put(r.Context(), records.Write{Name: path, Parts: [][]byte{[]byte(*in.Value)}, If: in.If})
	if err != nil {
		return nil, err
	}
	stored, _ := s.store.Get(path)
	return entry{Path: path, Version: version, Key: stored.KeyID(0).String()}, nil
}

// get opens a secret. By default it is what the leader has, which the log orders among all that is
// put. With ?stale it is what this server has, which may be late, and also works without a leader.
// Anybody who has a workload's token sees the workload's own secrets, workload/<name>/..., alone.
func (s *server) get(r *http.Request) (any, error) {
	path, err := secretPath(r.PathValue("path"))
	if err != nil {
		return nil, err
	}
	who, err := s.caller(r)
	if err != nil {
		return nil, err
	}
	if who != "" && !strings.HasPrefix(path, who+"/") {
		return nil, errForbidden
	}
	stale, err := flagOf(r, "stale")
	if err != nil {
		return nil, err
	}
	n, err := s.read(r.Context(), path, stale)
	if err != nil {
		return nil, err
	}
	value, err := s.open(r.Context(), n)
	if errors.Is(err, keyring.ErrUnknownKey) { // its key may have gone since it was read, and the secret moved
		if n, err = s.read(r.Context(), path, stale); err != nil {
			return nil, err
		}
		value, err = s.open(r.Context(), n)
	}
	if errors.Is(err, keyring.ErrUnknownKey) {
		err = s.lost(n)
	}
	if err != nil {
		return nil, err
	}
	return entry{path, n.Version, n.KeyID(0).String(), string(value)}, nil
}

// open decrypts a secret, here or, while its key is missing here, on the leader.
func (s *server) open(ctx context.Context, secret records.Record) ([]byte, error) {
	return s.node.Decrypt(ctx, secret.Parts[0], records.AAD(secret.Name, 0))
}

// read returns the secret at a path: as this server has it if it may be stale, else as the log has it.
func (s *server) read(ctx context.Context, path string, stale bool) (records.Record, error) {
	if stale {
		n, ok := s.store.Get(path)
		if st, err := s.node.Keyring().Status(ctx); !ok && err == nil && !st.CaughtUp {
			return n, fmt.Errorf("%w: this server has not caught up since its start", keyring.ErrNotReady)
		}
		if !ok {
			return n, records.ErrNotFound
		}
		return n, nil
	}
	answer, err := s.apply(ctx, command{Read: path})
	if err != nil {
		return records.Record{}, err
	}
	return answer.(records.Record), nil
}

// errGone is a secret that nobody can open any more.
var errGone = errors.New("the key of the secret was removed by force")

// lost says why a secret does not open whose key is unknown. If it was re-encrypted since it was read,
// and its old key removed after that, nothing is lost: the next request finds it.
func (s *server) lost(n records.Record) error {
	if now, ok := s.store.Get(n.Name); !ok || now.Version != n.Version || now.KeyID(0) != n.KeyID(0) {
		return fmt.Errorf("%w: the secret was re-encrypted meanwhile", keyring.ErrNotReady)
	}
	return errGone
}

// list names the secrets below ?prefix: those of the leader, as get does, or with ?stale those of this server, which may be late.
func (s *server) list(r *http.Request) (any, error) {
	stale, err := flagOf(r, "stale")
	if err == nil && !stale {
		err = s.isCurrent(r.Context())
	}
	if err != nil {
		return nil, err
	}
	out := []entry{}
	for n := range s.store.View().All(r.URL.Query().Get("prefix")) {
		out = append(out, entry{Path: n.Name, Version: n.Version, Key: n.KeyID(0).String()})
	}
	return out, nil
}

// identity issues a token that says of its bearer that it is a workload.
func (s *server) identity(r *http.Request) (any, error) {
	workload, err := secretPath(r.PathValue("workload"))
	if err == nil && strings.Contains(workload, "/") { // or the secrets of team/web would also be those of team
		err = badRequest{fmt.Errorf("workload %q: a name must not contain a slash", workload)}
	}
	if err != nil {
		return nil, err
	}
	var in identityRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	claims := map[string]any{"sub": subject + workload, "aud": in.Audience}
	if len(in.Audience) == 0 {
		claims["aud"] = audience
	}
	if in.TTL != "" {
		ttl, err := time.ParseDuration(in.TTL)
		if err != nil || ttl <= 0 || ttl > maxTTL {
			return nil, badRequest{fmt.Errorf("ttl %q is no duration of at most %v", in.TTL, maxTTL)}
		}
		claims["exp"] = time.Now().Add(ttl).Unix()
	}
	token, err := s.node.Sign(r.Context(), claims)
	if err != nil {
		return nil, err
	}
	return map[string]string{"token": token}, nil
}

// whoami tells whose token the request has. Every server can, with the public keys alone.
func (s *server) whoami(r *http.Request) (any, error) {
	who, err := s.caller(r)
	if err == nil && who == "" {
		err = fmt.Errorf("%w: the request has no token", keyring.ErrToken)
	}
	return map[string]string{"subject": who}, err
}

// errForbidden is what a workload gets that asks for more than its own.
var errForbidden = errors.New("not for this workload")

// caller returns the sub of the request's bearer token, or nothing if it has no token: then it is
// somebody at this machine.
func (s *server) caller(r *http.Request) (string, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "", nil
	}
	token, bearer := strings.CutPrefix(header, "Bearer ")
	var claims struct {
		Subject string `json:"sub"`
	}
	err := fmt.Errorf("%w: the scheme of Authorization is not Bearer", keyring.ErrToken)
	if bearer {
		err = s.node.Keyring().Verify(token, keyring.Expect{Audience: []string{audience}}, &claims)
	}
	workload, ok := strings.CutPrefix(claims.Subject, subject)
	if err == nil && (!ok || workload == "" || strings.Contains(workload, "/")) {
		err = fmt.Errorf("%w: it is not a workload's token", keyring.ErrToken)
	}
	return claims.Subject, err
}

// people keeps workloads out.
func (s *server) people(answer func(*http.Request) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if err := s.person(r); err != nil {
			return nil, err
		}
		return answer(r)
	}
}

// person returns an error if the request comes from a workload.
func (s *server) person(r *http.Request) error {
	who, err := s.caller(r)
	if err == nil && who != "" {
		err = errForbidden
	}
	return err
}

// secretPath checks a path: a valid one has no empty element, no dot elements, and is not long.
func secretPath(p string) (string, error) {
	if !fs.ValidPath(p) || p == "." || len(p) > 256 {
		return "", badRequest{fmt.Errorf("path %q: want elements separated by slashes, at most 256 bytes", p)}
	}
	return p, nil
}
