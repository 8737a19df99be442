package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// timeline is what the servers see. It prints what is news and lets the program wait for it.
type timeline struct {
	start time.Time

	mu      sync.Mutex // guards below
	out     io.Writer
	views   views
	changed chan struct{} // closed at the next change

	// What was printed last.
	leader raft.ServerID
	voters string
	keys   map[keyring.KeyID]keyring.State
}

func newTimeline(out io.Writer) *timeline {
	return &timeline{
		start: time.Now(), out: out, views: views{}, changed: make(chan struct{}), keys: map[keyring.KeyID]keyring.State{},
	}
}

// say prints a line: when, who, what.
func (t *timeline) say(who raft.ServerID, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.print(who, format, args...)
}

func (t *timeline) print(who raft.ServerID, format string, args ...any) {
	fmt.Fprintf(t.out, "%7.3fs  %-6s  %s\n", time.Since(t.start).Seconds(), who, fmt.Sprintf(format, args...))
}

// see takes what a server sees now.
func (t *timeline) see(s keyring.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(s.Missing) == 0 && len(t.views[s.ID].Missing) > 0 {
		t.print(s.ID, "holds all keys: %d", len(s.Keys))
	}
	t.views[s.ID] = s
	t.wake()
	if s.Leader == s.ID {
		t.led(s)
	}
}

// led prints what is news, as the leader sees it: the others follow.
func (t *timeline) led(s keyring.Status) {
	if t.leader != s.ID {
		t.leader = s.ID
		t.print(s.ID, "leads")
	}
	if v := join(voters(s)); t.voters != v {
		t.voters = v
		t.print(s.ID, "voters are %s", v)
	}
	if !s.Ready { // it may not have applied yet all that the last leader did
		return
	}
	for _, k := range slices.Backward(s.Keys) {
		if t.keys[k.ID] != k.State && k.State != keyring.StateInactive { // that the next one is active says enough
			t.print(s.ID, "key %s is %s", short(k.ID), k.State)
		}
		t.keys[k.ID] = k.State
	}
}

// forget drops what a server saw that is gone.
func (t *timeline) forget(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.views, id)
	t.wake()
}

func (t *timeline) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// now returns what the servers see.
func (t *timeline) now() views {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.views)
}

// waitTime is for one wait: an election takes some seconds, a join waits for one.
const waitTime = 30 * time.Second

// until waits until what the servers see is as it should be.
func (t *timeline) until(ctx context.Context, what string, is func(views) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, waitTime, errors.New("it took too long"))
	defer cancel()
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if is(t.now()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w; the servers see %+v", what, context.Cause(ctx), t.now())
		}
	}
}

// settle waits until nothing is left to do in the cluster.
func (t *timeline) settle(ctx context.Context) error {
	return t.until(ctx, "all servers vote and hold all keys", views.settled)
}

// views is what each live server sees.
type views map[raft.ServerID]keyring.Status

// leader returns what the leader sees once it is ready, else nothing.
func (vs views) leader() keyring.Status {
	for id, s := range vs {
		if s.Leader == id && s.Ready {
			return s
		}
	}
	return keyring.Status{}
}

// others returns the live servers but one, as node.Config.Join has them.
func (vs views) others(id raft.ServerID) (all []string) {
	for own, view := range vs {
		for _, s := range view.Servers {
			if own != id && s.ID == own {
				all = append(all, string(s.ID)+"@"+string(s.Address))
			}
		}
	}
	return all
}

// member reports whether a live server has it in its raft configuration.
func (vs views) member(id raft.ServerID) bool {
	for _, view := range vs {
		if slices.ContainsFunc(view.Servers, func(s raft.Server) bool { return s.ID == id }) {
			return true
		}
	}
	return false
}

// settled reports whether all servers are voters, see the same, and hold every key, and no
// key is yet to become active.
func (vs views) settled() bool {
	lead := vs.leader()
	if len(vs) < len(members) || len(voters(lead)) < len(members) {
		return false
	}
	for _, k := range lead.Keys {
		if k.State == keyring.StatePrepublished || len(k.Holders) < len(members) {
			return false
		}
	}
	for _, s := range vs {
		if !s.Ready || s.Leader != lead.ID || s.Active != lead.Active || len(s.Missing) > 0 {
			return false
		}
	}
	return true
}

func voters(s keyring.Status) (ids []raft.ServerID) {
	for _, server := range s.Servers {
		if server.Suffrage == raft.Voter {
			ids = append(ids, server.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func short(id keyring.KeyID) string { return id.String()[:8] }

func join(ids []raft.ServerID) string { return strings.Trim(fmt.Sprint(ids), "[]") }
