package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// initialized is what init makes, for the servers s1 to s3 or for the first of them alone.
func initialized(t *testing.T, servers int) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "cluster")
	if err := setUp(dir, 0, members); err != nil {
		t.Fatal(err)
	}
	c, err := readCluster(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := servers; i < members; i++ {
		delete(c.Servers, raft.ServerID(fmt.Sprintf("s%d", i+1)))
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startServers starts servers, without their ports for the API, and waits until they are ready.
// Change, if not nil, is called before each starts.
func startServers(t *testing.T, dir string, o options, change func(*node.Config), ids ...raft.ServerID) map[raft.ServerID]*server {
	t.Helper()
	servers, errs := map[raft.ServerID]*server{}, make(chan error, len(ids))
	for _, id := range ids {
		s, conf, err := newServer(dir, id, o)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(&conf)
		}
		servers[id] = s
		go func() { // all at once: they found their cluster together
			n, err := node.Start(t.Context(), conf)
			if err == nil {
				err = s.begin(n)
			}
			if err == nil {
				err = n.Keyring().WaitReady(t.Context())
			}
			errs <- err
		}()
	}
	for range ids {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { stop(t, servers) })
	return servers
}

func stop(t *testing.T, servers map[raft.ServerID]*server) {
	t.Helper()
	for id, s := range servers {
		if err := s.node.Close(); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// ask sends a request to a server's API.
func ask(s *server, method, path, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "127.0.0.1:8001"
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, r)
	return w
}

// interrupted is a KEK that calls a function, if there is one, when it wraps a key.
type interrupted struct {
	keyring.KEK
	by chan func()
}

func (k interrupted) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	select {
	case f := <-k.by:
		f()
	default:
	}
	return k.KEK.Wrap(ctx, plaintext, aad)
}

// A leader that loses the others while it makes a key can't tell whether they will have it. 503, or a
// redirect, would have clients send the request again.
func TestARotationThatHasBegunIsOfUnknownOutcome(t *testing.T) {
	wrapping := map[raft.ServerID]chan func(){}
	servers := startServers(t, initialized(t, 3), options{}, func(c *node.Config) {
		wrapping[c.ID] = make(chan func(), 1)
		c.KEKs[0] = interrupted{c.KEKs[0], wrapping[c.ID]}
	}, "s1", "s2", "s3")
	leader := servers["s1"].await(t, func(st status) bool { return st.Leader != "" }).Leader
	s, others := servers[leader], maps.Clone(servers)
	delete(others, leader)
	wrapping[leader] <- func() { stop(t, others) }
	if w := ask(s, "POST", "/v1/keys", `{}`); w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "may be a new key") {
		t.Errorf("begun: %d %s", w.Code, w.Body)
	}
	// The next one finds no leader before it begins.
	s.await(t, func(st status) bool { return st.Leader == "" })
	if w := ask(s, "POST", "/v1/keys", `{}`); w.Code != http.StatusServiceUnavailable {
		t.Errorf("not begun: %d %s", w.Code, w.Body)
	}
}

// The audit log has every step, and who has asked for it.
func TestAuditSaysWhoHasAsked(t *testing.T) {
	var log bytes.Buffer // read when the server, which alone writes it, is closed
	o := options{clicks: true, log: hclog.New(&hclog.LoggerOptions{Output: &log, DisableTime: true})}
	servers := startServers(t, initialized(t, 1), o, nil, "s1")
	s := servers["s1"]
	first := s.node.Keyring().Keys()[0].ID.String()
	page := func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }
	backup := ask(s, "POST", "/v1/backup", `{"to":["`+newIdentity(t).Recipient().String()+`"]}`)
	for _, w := range []*httptest.ResponseRecorder{
		backup,
		ask(s, "POST", "/v1/backup/"+backup.Result().Trailer.Get("Backup-Sha256"), ""),
		ask(s, "POST", "/v1/keys", `{}`, page),
		ask(s, "DELETE", "/v1/keys/"+first+"?force", ``),
	} {
		if w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
	}
	second := s.node.Keyring().Keys()[0].ID.String()
	stop(t, servers)
	for _, want := range []string{
		"step=activated key=" + first + " by=keyring",
		"step=added key=" + second + " by=page",
		"step=removed key=" + first + " by=api",
		"step=backup key=" + keyring.KeyID{}.String() + " by=api",
	} {
		if n := strings.Count(log.String(), "audit: "+want); n != 1 {
			t.Errorf("%d lines with %s", n, want)
		}
	}
	if t.Failed() {
		t.Log(&log)
	}
}

// A backup that nobody reads is held up in a write to its client, and must not hold up the end.
func TestServerEndsWhileABackupIsNotRead(t *testing.T) {
	dir := initialized(t, 1)
	out, in := io.Pipe()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, dir, "s1", options{stdout: in}) }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c := client{strings.TrimSpace(strings.TrimPrefix(line, "s1 "))}
	c.awaitReady(t)
	const secrets = 64 // more than what the buffers of a connection hold
	errs := make(chan error, secrets)
	for i := range secrets {
		go func() {
			errs <- c.call(ctx, "PUT", fmt.Sprint("/v1/secrets/", i), putRequest{Value: strings.Repeat("x", maxValue)}, &entry{})
		}()
	}
	for range secrets {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.Post(c.base+"/v1/backup", "", strings.NewReader(`{"to":["`+newIdentity(t).Recipient().String()+`"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	end()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second): // only if it never ends
		t.Error("the server does not end")
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("the node has ended a backup, after %d bytes, before the API has ended its connection", n)
	}
}

// awaitReady waits until a server says of itself that it is ready.
func (c client) awaitReady(t *testing.T) {
	t.Helper()
	resp, err := http.Get(c.base + "/v1/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := json.NewDecoder(resp.Body)
	for st := (status{}); !st.Ready; {
		if err := in.Decode(&st); err != nil {
			t.Fatal(err)
		}
	}
}

// A server that the cluster has removed joins with a token, which is then listed as used, and withdrawn.
func TestServerJoinsWithATokenOfTheCommand(t *testing.T) {
	dir := initialized(t, 3)
	servers := startServers(t, dir, options{}, nil, "s1", "s2", "s3")
	api := httptest.NewServer(servers["s1"].handler())
	defer api.Close()
	c := client{api.URL}
	if _, err := runCommand(t, c, "servers", "remove", "s3"); err != nil {
		t.Fatal(err)
	}
	if err := servers["s3"].node.Close(); err != nil {
		t.Fatal(err)
	}
	delete(servers, "s3")
	token, err := runCommand(t, c, "servers", "token", "-ttl", "10m", "s3")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "s3")); err != nil {
		t.Fatal(err)
	}
	startServers(t, dir, options{token: file}, nil, "s3")
	list, err := runCommand(t, c, "servers", "tokens")
	if err != nil || !strings.Contains(list, "for s3") || !strings.HasSuffix(list, "  used\n") {
		t.Fatalf("%q, %v", list, err)
	}
	id, _, _ := strings.Cut(list, " ")
	if out, err := runCommand(t, c, "servers", "withdraw", id); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := runCommand(t, c, "servers", "withdraw", id); err == nil {
		t.Error("it can be withdrawn twice")
	}
}

// What a follower has may be late, so by default list is answered by the leader, as get is.
func TestListIsTheLeadersUnlessItMayBeStale(t *testing.T) {
	servers := startServers(t, initialized(t, 3), options{}, nil, "s1", "s2", "s3")
	leader := servers["s1"].await(t, func(st status) bool { return st.Leader != "" }).Leader
	if w := ask(servers[leader], "PUT", "/v1/secrets/a", `{"value":"x"}`); w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	if w := ask(servers[leader], "GET", "/v1/secrets", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"path":"a"`) {
		t.Errorf("the leader: %d %s", w.Code, w.Body)
	}
	for id, s := range servers {
		if id == leader {
			continue
		}
		s.await(t, func(st status) bool { return st.Leader == leader })
		w := ask(s, "GET", "/v1/secrets?prefix=a", "")
		if to := "http://" + s.cluster.Servers[leader].HTTP + "/v1/secrets?prefix=a"; w.Code != http.StatusTemporaryRedirect || w.Header().Get("Location") != to {
			t.Errorf("%s: %d to %q, want %q", id, w.Code, w.Header().Get("Location"), to)
		}
		if w := ask(s, "GET", "/v1/secrets?stale", ""); w.Code != http.StatusOK {
			t.Errorf("%s: what it has: %d %s", id, w.Code, w.Body)
		}
	}
}
