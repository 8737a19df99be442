package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// Of two servers that lead, or are led, apart from each other the view shows one, and tells of the other.
func TestViewTellsOfASecondCluster(t *testing.T) {
	var other status
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(other)
	}))
	defer api.Close()
	_, c := alone(t, func(s *server, _ *node.Config) {
		s.cluster.Servers = map[raft.ServerID]serverAddrs{"server": {}, "t2": {HTTP: strings.TrimPrefix(api.URL, "http://")}}
	})
	for _, test := range []struct {
		leader raft.ServerID
		want   []string
	}{
		{"server", nil},
		{"", nil}, // it has no leader, or does not know it yet
		{"t2", []string{"its leader is t2, and not server: if that stays so, these are two clusters"}},
		{"t3", []string{"its leader is t3, and not server: if that stays so, these are two clusters"}},
	} {
		other = status{ID: "t2", Leader: test.leader, Ready: true}
		var v view
		if err := c.call(t.Context(), "GET", "/v1/cluster", nil, &v); err != nil {
			t.Fatal(err)
		}
		if got := v.Servers["t2"].Problems; !slices.Equal(got, test.want) {
			t.Errorf("led by %q: %q", test.leader, got)
		}
		for _, p := range v.Servers["server"].Problems {
			if strings.Contains(p, "leader") {
				t.Errorf("%q of the one that is shown", p)
			}
		}
	}
}

// Problems come with what to do. An inline KEK is one that may be wanted.
func TestStatusSaysWhatToDo(t *testing.T) {
	_, c := alone(t, func(s *server, _ *node.Config) {
		s.cluster.Servers = map[raft.ServerID]serverAddrs{"server": {}}
	})
	out, err := runCommand(t, c, "keys", "status")
	if err != nil || !strings.Contains(out, "server: inline KEK") || !strings.Contains(out, ". Use another KEK") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Scripts hear by the status alone that something is wrong, and have all of it as JSON.
func TestStatusIsAFindingIfSomethingIsWrong(t *testing.T) {
	good := answer{status: status{ID: "s1", Leader: "s1", Ready: true}}
	follower := answer{status: status{ID: "s2", Leader: "s1", Ready: true}}
	for _, test := range []struct {
		name   string
		first  answer
		second answer
		line   string
	}{
		{"well", good, follower, ""},
		{"away", good, answer{Error: "connection refused"}, "s2: connection refused"},
		{"a problem", good, answer{status: status{ID: "s2", Leader: "s1", Problems: []string{"key missing: x"}}}, "s2: key missing: x"},
		{"another leader", good, answer{status: status{ID: "s2", Leader: "s2"}}, "s2: its leader is s2, and not s1"},
		{"no leader", answer{status: status{ID: "s1"}}, answer{status: status{ID: "s2"}}, "no server that answers leads"},
		{"the leader is away", answer{Error: "connection refused"}, follower, "no server that answers leads"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := view{Servers: map[raft.ServerID]answer{"s1": test.first, "s2": test.second}}
			v.compare()
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) }))
			defer api.Close()
			out, err := runCommand(t, client{api.URL}, "keys", "status")
			if errors.As(err, new(finding)) != (test.line != "") || !strings.Contains(out, "\n"+test.line) {
				t.Errorf("%v\n%s", err, out)
			}
			out, again := runCommand(t, client{api.URL}, "keys", "status", "-json")
			want, _ := json.Marshal(v)
			if out != string(want)+"\n" || errors.As(again, new(finding)) != (test.line != "") {
				t.Errorf("-json: %v\n%s", again, out)
			}
		})
	}
}

// After keys rotate -compromised no key of before is of use.
func TestRotateAfterACompromise(t *testing.T) {
	s, c := alone(t, nil)
	old := s.node.Keyring().Keys()[0].ID
	if out, err := runCommand(t, c, "keys", "rotate", "-compromised"); err != nil || !strings.Contains(out, "is active") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, k := range s.node.Keyring().Keys() {
		if k.ID == old && !(k.Revoked && k.Removing) {
			t.Errorf("%+v", k)
		}
	}
}

// TestRotatePublishesFirst: the JWKS has the key before it signs, and what is no time, or comes too late, is refused before
// there is a key.
func TestRotatePublishesFirst(t *testing.T) {
	s, c := alone(t, nil)
	old, err := s.node.Keyring().ActiveKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-publish", "5"}, {"-publish", "-5m"}, {"-publish", "0s"}, {"-publish", "1000000h"}, {"-publish", "5m", "-compromised"}} {
		if out, err := runCommand(t, c, append([]string{"keys", "rotate"}, args...)...); err == nil || len(s.node.Keyring().Keys()) != 1 {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	if out, err := runCommand(t, c, "keys", "rotate", "-publish", "5m"); err != nil || !strings.Contains(out, "is prepublished") {
		t.Fatalf("%v\n%s", err, out)
	}
	active, err := s.node.Keyring().ActiveKey()
	if err != nil || active.ID != old.ID {
		t.Errorf("%s is active, %v", active.ID, err)
	}
	for _, k := range s.node.Keyring().Keys() {
		if !strings.Contains(string(s.node.Keyring().JWKS()), k.ID.String()) {
			t.Errorf("the JWKS lacks %s", k.ID)
		}
		if wait := time.Until(k.Publish); k.ID != old.ID && (wait < 4*time.Minute || wait > 5*time.Minute) {
			t.Errorf("it is due in %v", wait)
		}
	}
}
