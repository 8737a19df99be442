package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/node"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// client calls the API of a server.
type client struct{ base string }

func (c client) call(ctx context.Context, method, path string, in, out any) error {
	to, err := admin.NewClient(c.base, nil)
	if err != nil {
		return err
	}
	return to.Call(ctx, method, path, in, out)
}

// alone is a control plane of one server, without a port of its node's. Change, if not nil, is
// called before it starts.
func alone(t *testing.T, change func(*server, *node.Config)) (*server, client) {
	t.Helper()
	keys := keyring.NewFSM()
	s := &server{id: "server", store: newStore(keys), started: make(chan struct{})}
	conf := node.Config{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: s.store, Keys: keys, Data: s.store,
		Tokens: keyring.TokenPolicy{Issuer: "http://127.0.0.1:8001", Algorithm: "EdDSA", MaxTTL: maxTTL},
	}
	if change != nil {
		change(s, &conf)
	}
	n, err := node.Start(t.Context(), conf)
	if err == nil {
		err = s.begin(n)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.node.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.node.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	api := httptest.NewServer(s.handler())
	t.Cleanup(api.Close)
	return s, client{api.URL}
}

// do sends a request with a bearer token, if there is one, and returns the status and the body.
func (c client) do(t *testing.T, method, path, token, body string, change ...func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, c.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPutIsACompareAndSet(t *testing.T) {
	_, c := alone(t, nil)
	var first, second, got entry
	if err := c.call(t.Context(), "PUT", "/v1/secrets/db/password", putRequest{Value: "one"}, &first); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		version string
		status  int
	}{
		{"0", http.StatusConflict},
		{fmt.Sprint(first.Version - 1), http.StatusConflict},
		{fmt.Sprint(first.Version + 1), http.StatusConflict},
		{fmt.Sprint(first.Version), http.StatusOK},
		{fmt.Sprint(first.Version), http.StatusConflict},
	} {
		if status, body := c.do(t, "PUT", "/v1/secrets/db/password", "", `{"value":"two","if":`+test.version+`}`); status != test.status {
			t.Errorf("if version %s: %d %s, want %d", test.version, status, body, test.status)
		}
	}
	zero := uint64(0)
	if err := c.call(t.Context(), "PUT", "/v1/secrets/db/user", putRequest{Value: "new", If: &zero}, &second); err != nil {
		t.Errorf("if there is none: %v", err)
	}
	for _, query := range []string{"", "?stale"} {
		if err := c.call(t.Context(), "GET", "/v1/secrets/db/password"+query, nil, &got); err != nil || got.Value != "two" {
			t.Errorf("get%s: %+v, %v", query, got, err)
		}
	}
	for _, args := range [][]string{{"list"}, {"list", "-stale"}, {"list", "db/p"}, {"list", "-stale", "db/p"}} {
		if out, err := runCommand(t, c, args...); err != nil || !strings.Contains(out, "db/password version") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	if status, body := c.do(t, "GET", "/v1/secrets?prefix=db/p", "", ""); status != 200 || strings.Count(body, `"path"`) != 1 || strings.Contains(body, "two") {
		t.Errorf("list: %d %s", status, body)
	}
}

// A full rotation leaves versions and values as they are, and the index says where everything is.
func TestFullRotationReencryptsEverySecret(t *testing.T) {
	s, c := alone(t, nil)
	const secrets = 600 // more than two batches
	before := map[string]uint64{}
	for i := range secrets {
		var e entry
		if err := c.call(t.Context(), "PUT", fmt.Sprintf("/v1/secrets/app/%d", i), putRequest{Value: fmt.Sprint("value ", i)}, &e); err != nil {
			t.Fatal(err)
		}
		before[e.Path] = e.Version
	}
	old := s.node.Keyring().Keys()[0].ID
	var key admin.KeyStatus
	if err := c.call(t.Context(), "POST", "/v1/keys", map[string]bool{"full": true}, &key); err != nil {
		t.Fatal(err)
	}
	s.await(t, func(st status) bool { return st.Keys[1].State == keyring.StateDeprecated })
	if n, err := s.store.Count(t.Context(), old); n != 0 || err != nil {
		t.Errorf("%d secrets are under the old key, %v", n, err)
	}
	for path, version := range before {
		var e entry
		if err := c.call(t.Context(), "GET", "/v1/secrets/"+path, nil, &e); err != nil {
			t.Fatal(err)
		}
		if want := "value " + strings.TrimPrefix(path, "app/"); e.Version != version || e.Value != want || e.Key != key.ID {
			t.Errorf("%+v, want version %d and %q", e, version, want)
		}
	}
	if status, body := c.do(t, "DELETE", "/v1/keys/"+old.String(), "", ""); status != 200 {
		t.Errorf("remove: %d %s", status, body)
	}
	if status, body := c.do(t, "DELETE", "/v1/keys/"+key.ID, "", ""); status != http.StatusConflict || !strings.Contains(body, "active key") {
		t.Errorf("remove the active key: %d %s", status, body)
	}
}

// await waits for a status of the server's own.
func (s *server) await(t *testing.T, wanted func(status) bool) status {
	t.Helper()
	for {
		keys, secrets := s.node.Keyring().Changed(), s.store.Changed()
		st, err := s.own(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if wanted(st) {
			return st
		}
		select {
		case <-keys:
		case <-secrets:
		case <-t.Context().Done():
			t.Fatal("the test has ended")
		}
	}
}

// The fence: what was sealed before a rotation and comes after it is not stored, whatever raft does with its entry meanwhile.
func TestWhatWasSealedBeforeARotationIsNotStored(t *testing.T) {
	s, c := alone(t, nil)
	if status, body := c.do(t, "PUT", "/v1/secrets/a", "", `{"value":"old"}`); status != 200 {
		t.Fatal(status, body)
	}
	late := func(context.Context, []byte) (any, error) { panic("no command was caught") }
	s.store.Connect(s.node.Keyring(), func(_ context.Context, cmd []byte) (any, error) {
		late = func(ctx context.Context, _ []byte) (any, error) { return s.node.Apply(ctx, cmd) }
		return nil, context.DeadlineExceeded
	})
	if status, _ := c.do(t, "PUT", "/v1/secrets/a", "", `{"value":"late"}`); status != http.StatusInternalServerError {
		t.Fatal(status)
	}
	s.store.Connect(s.node.Keyring(), s.node.Apply)
	if status, body := c.do(t, "POST", "/v1/keys", "", `{"full":true}`); status != 200 {
		t.Fatal(status, body)
	}
	if _, err := late(t.Context(), nil); !errors.Is(err, keyring.ErrStaleKey) {
		t.Errorf("put: %v, want ErrStaleKey", err)
	}
	s.await(t, func(st status) bool { return st.Keys[1].State == keyring.StateDeprecated })
	if status, body := c.do(t, "GET", "/v1/secrets/a", "", ""); status != 200 || !strings.Contains(body, `"value":"old"`) {
		t.Errorf("get: %d %s", status, body)
	}
}

func TestWorkloadReadsItsOwnSecretsAlone(t *testing.T) {
	_, c := alone(t, nil)
	for _, path := range []string{"workload/web/db", "workload/webhook/db", "shared"} {
		if status, body := c.do(t, "PUT", "/v1/secrets/"+path, "", `{"value":"s3cret"}`); status != 200 {
			t.Fatal(status, body)
		}
	}
	token := func(request string) string {
		status, body := c.do(t, "POST", "/v1/identities/web", "", request)
		var out struct{ Token string }
		if err := json.Unmarshal([]byte(body), &out); status != 200 || err != nil {
			t.Fatal(status, body)
		}
		return out.Token
	}
	own, foreign := token(`{}`), token(`{"audience":["elsewhere"],"ttl":"1m"}`)
	for _, test := range []struct {
		method, path, token, body string
		status                    int
	}{
		{"GET", "/v1/whoami", own, "", 200},
		{"GET", "/v1/whoami", "", "", 401},
		{"GET", "/v1/whoami", foreign, "", 401},
		{"GET", "/v1/whoami", own + "x", "", 401},
		{"GET", "/v1/secrets/workload/web/db", own, "", 200},
		{"GET", "/v1/secrets/workload/web/db?stale", own, "", 200},
		{"GET", "/v1/secrets/workload/web/db", foreign, "", 401},
		{"GET", "/v1/secrets/workload/webhook/db", own, "", 403},
		{"GET", "/v1/secrets/shared", own, "", 403},
		{"GET", "/v1/secrets", own, "", 403},
		{"PUT", "/v1/secrets/workload/web/db", own, `{"value":"mine"}`, 403},
		{"POST", "/v1/identities/root", own, `{}`, 403},
		{"POST", "/v1/keys", own, `{}`, 403},
		{"DELETE", "/v1/keys/00000000-0000-4000-8000-000000000000", own, ``, 403},
		{"GET", "/v1/status", own, "", 403},
		{"GET", "/v1/cluster", own, "", 403},
		{"GET", "/v1/watch", own, "", 403},
	} {
		status, body := c.do(t, test.method, test.path, test.token, test.body)
		if status != test.status {
			t.Errorf("%s %s: %d %s, want %d", test.method, test.path, status, body, test.status)
		}
		if status != 200 && strings.Contains(body, "s3cret") {
			t.Errorf("%s %s: %s", test.method, test.path, body)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	s, c := alone(t, nil)
	cross := func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }
	browser := func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }
	rebound := func(r *http.Request) { r.Host = "evil.example:8001" }
	none := func(*http.Request) {}
	for _, test := range []struct {
		method, path, body string
		change             func(*http.Request)
		status             int
	}{
		{"PUT", "/v1/secrets/a//b", `{}`, none, 307}, // to a path that is clean; ServeMux does that
		{"PUT", "/v1/secrets/", `{}`, none, 400},
		{"PUT", "/v1/secrets/a/", `{}`, none, 400},
		{"PUT", "/v1/secrets/" + strings.Repeat("a", 257), `{}`, none, 400},
		{"PUT", "/v1/secrets/a", ``, none, 400},
		{"PUT", "/v1/secrets/a", `{"valeu":"x"}`, none, 400},
		{"PUT", "/v1/secrets/a", `{"value":"` + strings.Repeat("x", maxValue+1) + `"}`, none, 400},
		{"PUT", "/v1/secrets/a", `{"value":"` + strings.Repeat("x", maxBody) + `"}`, none, 400},
		{"GET", "/v1/secrets/a", ``, none, 404},
		{"POST", "/v1/identities/web", `{"ttl":"1h1s"}`, none, 400},
		{"POST", "/v1/identities/web", `{"ttl":"-1m"}`, none, 400},
		{"DELETE", "/v1/keys/nonsense", ``, none, 400},
		{"DELETE", "/v1/keys/00000000-0000-4000-8000-000000000000", ``, none, 400},
		{"POST", "/v1/keys", `{"revoke":["00000000-0000-4000-8000-000000000000"]}`, none, 400},
		{"POST", "/v1/keys", `{}`, cross, 403},
		{"POST", "/v1/keys", `{}`, browser, 403}, // clicks are not allowed
		{"GET", "/v1/status", ``, rebound, 421},
		{"PUT", "/v1/secrets/a", `{"value":"x"}`, rebound, 421},
	} {
		follow := http.DefaultClient.CheckRedirect
		http.DefaultClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		status, body := c.do(t, test.method, test.path, "", test.body, test.change)
		http.DefaultClient.CheckRedirect = follow
		if status != test.status {
			t.Errorf("%s %.40s %.40s: %d %s, want %d", test.method, test.path, test.body, status, body, test.status)
		}
	}
	if n := len(s.node.Keyring().Keys()); n != 1 {
		t.Errorf("%d keys", n)
	}
	_, c = alone(t, func(s *server, _ *node.Config) { s.clicks = true })
	if status, body := c.do(t, "POST", "/v1/keys", "", `{}`, browser); status != 200 {
		t.Errorf("a click where clicks are allowed: %d %s", status, body)
	}
}

// Without its key a secret is gone, and the caller is not to blame, until somebody puts it again.
func TestSecretOfAKeyRemovedByForceIsGone(t *testing.T) {
	s, c := alone(t, nil)
	first := s.node.Keyring().Keys()[0].ID.String()
	for _, step := range []struct {
		method, path, body string
		status             int
	}{
		{"PUT", "/v1/secrets/a", `{"value":"x"}`, 200},
		{"POST", "/v1/keys", `{}`, 200},
		{"DELETE", "/v1/keys/" + first + "?force", ``, 200},
		{"GET", "/v1/secrets/a", ``, 410},
		{"GET", "/v1/secrets/a?stale", ``, 410},
	} {
		if status, body := c.do(t, step.method, step.path, "", step.body); status != step.status {
			t.Errorf("%s %s: %d %s, want %d", step.method, step.path, status, body, step.status)
		}
	}
	n, _ := s.store.Get("a")
	for _, request := range []string{"PUT", "GET"} {
		if status, body := c.do(t, request, "/v1/secrets/a", "", `{"value":"y"}`); status != 200 {
			t.Errorf("%s again: %d %s", request, status, body)
		}
	}
	if err := s.lost(n); !errors.Is(err, keyring.ErrNotReady) {
		t.Errorf("what was replaced since it was read: %v, want ErrNotReady", err)
	}
}

// Not found is what the store says. A file that a server misses is its own trouble.
func TestAMissingFileIsNotAMissingSecret(t *testing.T) {
	for err, want := range map[error]int{records.ErrNotFound: http.StatusNotFound, fs.ErrNotExist: http.StatusInternalServerError} {
		w := httptest.NewRecorder()
		if fail(w, err); w.Code != want {
			t.Errorf("%v: %d, want %d", err, w.Code, want)
		}
	}
}

func TestRequestBeforeTheStartIsNotReady(t *testing.T) {
	s := &server{store: newStore(keyring.NewFSM()), started: make(chan struct{})}
	for _, path := range []string{"/v1/status", "/v1/secrets/a", "/.well-known/jwks.json"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", path, nil)
		r.Host = "127.0.0.1:8001"
		if s.handler().ServeHTTP(w, r); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// What raft may have done must not be sent to another server: another put may have come between.
func TestAPutOfUnknownOutcomeIsNeitherRepeatedNorRedirected(t *testing.T) {
	lost := keyring.NotLeaderError{Leader: "s2"} // as after ErrLeadershipLost
	w := httptest.NewRecorder()
	s := &server{started: make(chan struct{}), cluster: cluster{Servers: map[raft.ServerID]serverAddrs{"s2": {HTTP: "127.0.0.1:1"}}}}
	close(s.started)
	s.serve(func(*http.Request) (any, error) { return nil, fmt.Errorf("%w: %w", records.ErrUncertain, lost) })(w, httptest.NewRequest("PUT", "/", nil))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	s.serve(func(*http.Request) (any, error) { return nil, lost }, "stale")(w, httptest.NewRequest("GET", "/v1/secrets/a?stale", nil))
	if to := w.Header().Get("Location"); w.Code != http.StatusTemporaryRedirect || to != "http://127.0.0.1:1/v1/secrets/a?stale" {
		t.Errorf("%d %s", w.Code, to)
	}
}

// A restart comes from a snapshot and the log after it.
func TestSecretsOutliveARestart(t *testing.T) {
	var sink memorySink
	s, c := alone(t, nil)
	for i := range 5 {
		if status, body := c.do(t, "PUT", fmt.Sprint("/v1/secrets/a/", i), "", `{"value":"x"}`); status != 200 {
			t.Fatal(status, body)
		}
	}
	before := s.store.View()
	snap, err := s.store.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if status, body := c.do(t, "PUT", "/v1/secrets/a/0", "", `{"value":"after the snapshot"}`); status != 200 {
		t.Fatal(status, body)
	}
	if err := snap.Persist(&sink); err != nil {
		t.Fatal(err)
	}
	other := newStore(keyring.NewFSM())
	if err := other.Restore(io.NopCloser(&sink)); err != nil {
		t.Fatal(err)
	}
	if got := other.View(); got.Index() != before.Index() || got.Len() != 5 {
		t.Errorf("index %d, %d secrets; want index %d", got.Index(), got.Len(), before.Index())
	}
	for n := range before.All("") {
		if g, ok := other.Get(n.Name); !ok || g.Version != n.Version || !bytes.Equal(g.Parts[0], n.Parts[0]) {
			t.Errorf("%s: %+v", n.Name, g)
		}
	}
}

type memorySink struct{ bytes.Buffer }

func (*memorySink) ID() string    { return "" }
func (*memorySink) Cancel() error { return nil }
func (*memorySink) Close() error  { return nil }

func TestWatchTellsOfEachChange(t *testing.T) {
	_, c := alone(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", c.base+"/v1/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := json.NewDecoder(resp.Body)
	wait := func(what string, wanted func(status) bool) {
		t.Helper()
		for st := (status{}); !wanted(st); {
			if err := in.Decode(&st); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	wait("the first", func(st status) bool { return st.Ready && len(st.Keys) == 1 })
	if status, body := c.do(t, "PUT", "/v1/secrets/a", "", `{"value":"x"}`); status != 200 {
		t.Fatal(status, body)
	}
	wait("a secret", func(st status) bool { return st.Secrets == 1 && st.Keys[0].Records == 1 })
	if status, body := c.do(t, "POST", "/v1/keys", "", `{"full":true}`); status != 200 {
		t.Fatal(status, body)
	}
	wait("a rotation", func(st status) bool {
		return len(st.Keys) == 2 && st.Keys[0].Records == 1 && st.Keys[1].State == keyring.StateDeprecated
	})
}
