package admin

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

var _ Server = (*node.Node)(nil)

// site3 is three servers with a raft of their own, each with a Handler below a prefix, and what reaches them.
type site3 struct {
	*keyringtest.Cluster
	handlers map[string]http.Handler // by host
	http     *http.Client            // sends to them, and adds what Authorize wants to see
	mu       sync.Mutex              // guards asked
	asked    []string                // the hosts, in order
}

func newSite3(t *testing.T, urls func() map[raft.ServerID]string) *site3 {
	s := &site3{Cluster: keyringtest.NewCluster(t, keyringtest.Options{Servers: 3}), handlers: map[string]http.Handler{}}
	s.http = &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.Host)
		s.mu.Unlock()
		h := s.handlers[r.URL.Host]
		if h == nil {
			return nil, errors.New("no such host")
		}
		own := r.Clone(r.Context())
		own.Header.Set("Authorization", "Bearer alice")
		if own.Body == nil {
			own.Body = http.NoBody
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, own)
		resp := w.Result()
		resp.Request = r
		return resp, nil
	})}
	for _, each := range s.Servers {
		h, err := New(ForKeyring(each.Keyring, keyring.AddServerOptions{}), Config{
			URLs: urls, Client: s.http, Buttons: true, Program: Program{Name: "kvd"},
			Authorize: func(r *http.Request) (string, error) {
				name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
				if !ok {
					return "", errors.New("no token")
				}
				return name, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.handlers[string(each.ID)] = http.StripPrefix("/keyring", h)
	}
	return s
}

// follower waits until all servers hold the first key, and returns a server that does not lead, and the leader.
func (s *site3) follower(t *testing.T) (follower, leader *keyringtest.Server) {
	t.Helper()
	leader = keyringtest.Ready(t, s.Cluster)
	keyringtest.AwaitKeys(t, s.Cluster)
	i := slices.IndexFunc(s.Servers, func(o *keyringtest.Server) bool { return o != leader })
	return s.Servers[i], leader
}

func allURLs() map[raft.ServerID]string {
	return map[raft.ServerID]string{"s1": "https://s1/keyring", "s2": "https://s2/keyring/", "s3": "https://s3/keyring"}
}

// What only the leader can do goes there, from whichever server is asked, once, and with the sender's credentials.
func TestAFollowerSendsToTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite3(t, allURLs)
		follower, leader := s.follower(t)
		c, err := NewClient("https://"+string(follower.ID)+"/keyring", s.http)
		if err != nil {
			t.Fatal(err)
		}
		key, err := c.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil || !slices.Equal(s.asked, []string{string(follower.ID), string(leader.ID)}) {
			t.Fatalf("%v, %q were asked", err, s.asked)
		}
		if keys := leader.Keyring.Keys(); len(keys) != 2 || keys[0].ID.String() != key.ID || key.State != keyring.StateActive {
			t.Errorf("%+v, %+v", keys, key)
		}
		keyringtest.AwaitKeys(t, s.Cluster) // or a server could not be removed
		old := leader.Keyring.Keys()[1].ID
		if _, err := c.JoinToken(t.Context(), "s4", time.Hour); err != nil {
			t.Errorf("a token: %v", err)
		}
		tokens := leader.Keyring.JoinTokens() // the follower may be behind by a moment
		if len(tokens) != 1 || tokens[0].Server != "s4" {
			t.Fatalf("%v", tokens)
		}
		for what, err := range map[string]error{
			"withdraw": c.WithdrawJoinToken(t.Context(), tokens[0].ID),
			"remove":   c.Remove(t.Context(), old, keyring.RemoveOptions{Force: true}),
			"server":   c.RemoveServer(t.Context(), follower.ID, keyring.RemoveServerOptions{}),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if at, err := c.AddServer(t.Context(), follower.ID, string(follower.ID)+":1"); err != nil || at != string(follower.ID)+":1" {
			t.Errorf("added at %q: %v", at, err)
		}
	})
}

// Where nobody has said where the leader is, and where a browser would not go there, the answer says which server leads.
func TestAFollowerSaysWhoLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := false
		s := newSite3(t, func() map[raft.ServerID]string {
			if !known {
				return nil
			}
			return allURLs()
		})
		follower, leader := s.follower(t)
		rotate := func(change ...func(*http.Request)) *httptest.ResponseRecorder {
			auth := func(r *http.Request) { r.Header.Set("Authorization", "Bearer alice") }
			return ask(s.handlers[string(follower.ID)], "POST", "/keyring/v1/keys", strings.NewReader("{}"), append(change, auth)...)
		}
		w := rotate()
		if wantError(t, "no URLs", w, http.StatusServiceUnavailable); !strings.Contains(w.Body.String(), "that is "+string(leader.ID)) {
			t.Errorf("%s", w.Body)
		}
		known = true
		w = rotate(func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") })
		if wantError(t, "a browser", w, http.StatusServiceUnavailable); !strings.Contains(w.Body.String(), "at https://"+string(leader.ID)+"/keyring") {
			t.Errorf("%s", w.Body)
		}
		w = rotate()
		if to := w.Header().Get("Location"); w.Code != http.StatusTemporaryRedirect || to != "https://"+string(leader.ID)+"/keyring/v1/keys" {
			t.Errorf("%d to %q", w.Code, to)
		}
		for _, each := range s.Servers {
			if n := len(each.Keyring.Keys()); n != 1 {
				t.Errorf("%s has %d keys", each.ID, n)
			}
		}
	})
}

// The page of each server shows all of them. A server that leads the asker elsewhere has not answered.
func TestTheOverviewAsksAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite3(t, allURLs)
		follower, leader := s.follower(t)
		c, err := NewClient("https://"+string(follower.ID)+"/keyring", s.http)
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.Overview(t.Context())
		roles := map[raft.ServerID]string{}
		for _, row := range v.Servers {
			roles[row.ID] = row.Role
		}
		if err != nil || len(roles) != 3 || roles[leader.ID] != "leader" || roles[follower.ID] != "follower" || v.Counted || v.Active == nil || v.Active.Records != -1 {
			t.Errorf("%v, %+v", err, v)
		}
		s.handlers[string(leader.ID)] = http.RedirectHandler("https://elsewhere/v1/status", http.StatusFound)
		s.asked = nil
		v, err = c.Overview(t.Context())
		i := slices.IndexFunc(v.Servers, func(r ServerRow) bool { return r.ID == leader.ID })
		if err != nil || i < 0 || v.Servers[i].Role != "bad answer" || slices.Contains(s.asked, "elsewhere") {
			t.Errorf("%v, %+v, %q were asked", err, v.Servers, s.asked)
		}
	})
}

// Without URLs a server shows itself, and no problem that others were not asked.
func TestTheOverviewOfOneServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite3(t, nil)
		follower, _ := s.follower(t)
		c, err := NewClient("https://"+string(follower.ID)+"/keyring", s.http)
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.Overview(t.Context())
		if err != nil || len(v.Servers) != 3 || slices.ContainsFunc(v.Problems, func(c Cause) bool { return c.Kind == problemNotListed || c.Kind == keyring.ProblemNoLeader }) {
			t.Errorf("%v, %+v", err, v)
		}
		if want := "All is well on the servers that were asked: 1 of 3 servers answer."; !strings.HasPrefix(v.Verdict.Text, want) {
			t.Errorf("%q, want %q", v.Verdict.Text, want)
		}
	})
}

// A redirect takes a client to a few servers, and never to one without TLS.
func TestRedirectsHaveBounds(t *testing.T) {
	var asked []string
	to := func(r *http.Request) string { return "https://next" + r.URL.Path }
	hc := &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.Host)
		w := httptest.NewRecorder()
		http.Redirect(w, r, to(r), http.StatusTemporaryRedirect)
		resp := w.Result()
		resp.Request = r
		return resp, nil
	})}
	c, err := NewClient("https://s1", hc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err == nil || len(asked) != maxRedirects+1 {
		t.Errorf("%v, %q were asked", err, asked)
	}
	asked, to = nil, func(*http.Request) string { return "http://s2/v1/status" }
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "from https to http") || len(asked) != 1 {
		t.Errorf("%v, %q were asked", err, asked)
	}
}

// Votes are given and taken, and the leader hands over, from whichever server an operator asks.
func TestVotesAndTheLeaderChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite3(t, allURLs)
		follower, leader := s.follower(t)
		command := func(args ...string) (string, error) {
			var out strings.Builder
			err := Command(t.Context(), append([]string{"-server", "https://" + string(follower.ID) + "/keyring", "servers"}, args...),
				CommandOptions{HTTP: s.http, Stdout: &out, Stderr: &out})
			return out.String(), err
		}
		id := string(follower.ID)
		for _, step := range []struct {
			command string
			of      raft.ServerID
			has     raft.ServerSuffrage
		}{
			{"demote " + id, follower.ID, raft.Nonvoter}, {"promote " + id, follower.ID, raft.Voter}, {"add -nonvoter -addr s4:1 s4", "s4", raft.Nonvoter},
		} {
			out, err := command(strings.Fields(step.command)...)
			st, err2 := leader.Keyring.Status(t.Context())
			i := slices.IndexFunc(st.Servers, func(m raft.Server) bool { return m.ID == step.of })
			if errors.Join(err, err2) != nil || i < 0 || st.Servers[i].Suffrage != step.has {
				t.Fatalf("%s: %q, %v, %v: %+v", step.command, out, err, err2, st.Servers)
			}
		}
		if st, err := leader.Keyring.Status(t.Context()); err != nil || !slices.Equal(st.Nonvoters, []raft.ServerID{"s4"}) {
			t.Errorf("%v: the permanent non-voters are %q", err, st.Nonvoters)
		}
		if out, err := command("lead", string(leader.ID)); err != nil || s.Leader() != leader {
			t.Errorf("to the leader itself: %q, %v; %s leads", out, err, s.Leader().ID)
		}
		if out, err := command("lead", string(follower.ID)); err != nil {
			t.Fatalf("%q, %v", out, err)
		}
		if now := s.Leader(); now != follower {
			t.Errorf("%s leads, not %s", now.ID, follower.ID)
		}
	})
}

// What the members of now do not allow is a conflict, and of what is no member there is none.
func TestVotesThatAreRefused(t *testing.T) {
	s := alone(t, nil)
	for path, want := range map[string]int{
		"/v1/servers/server/demote": 409, "/v1/servers/s9/demote": 404, "/v1/servers/s9/promote": 404, "/v1/servers/server/promote": 200, "/v1/leader": 409,
	} {
		w := ask(s, "POST", path, strings.NewReader("{}"))
		if w.Code != want {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
	for body, want := range map[string]int{`{"id":" "}`: 400, `{"id":"server"}`: 200} {
		if w := ask(s, "POST", "/v1/leader", strings.NewReader(body)); w.Code != want {
			t.Errorf("to %s: %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
}
