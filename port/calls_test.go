package port_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// startCalled starts three servers that answer the calls of these handlers, and waits until they are ready.
func startCalled(t *testing.T, handlers func(h *host) map[string]port.Handler) *hosts {
	t.Helper()
	hs := newHosts(t, 3)
	for _, h := range hs.all {
		hs.listen(h)
		for path, handler := range handlers(h) {
			h.port.Handle(path, handler)
		}
		hs.run(h, true)
	}
	for id, h := range hs.all {
		if err := h.keys.WaitReady(t.Context()); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	return hs
}

// TestHostForwardsToTheLeader over its port, on whichever server it is called: with an empty ID, or with that of a member.
func TestHostForwardsToTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startCalled(t, func(h *host) map[string]port.Handler {
			return map[string]port.Handler{
				"/who": func(_ context.Context, from raft.ServerID, body []byte) ([]byte, error) {
					return []byte(string(from) + " asks " + string(h.id) + ": " + string(body)), nil
				},
				"/apply": func(_ context.Context, _ raft.ServerID, body []byte) ([]byte, error) {
					return nil, h.raft.Apply(body, 0).Error()
				},
			}
		})
		leader := hs.leader()
		for id, h := range hs.all {
			for to, want := range map[raft.ServerID]raft.ServerID{"": leader.id, "h1": "h1", "h2": "h2", "h3": "h3"} {
				got, err := h.port.Request(t.Context(), to, "/who", []byte("it"))
				if want := string(id) + " asks " + string(want) + ": it"; err != nil || string(got) != want {
					t.Errorf("%s to %q: %q, %v, want %q", id, to, got, err, want)
				}
			}
			other := hs.other(leader)
			if _, err := h.port.Request(t.Context(), other.id, "/apply", nil); !errors.Is(err, keyring.ErrNotLeader) {
				t.Errorf("%s has %s apply: %v", id, other.id, err)
			}
		}
	})
}

// TestErrorsOfHandlers keep their text, and what they match if that is the keyring's.
func TestErrorsOfHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startCalled(t, func(*host) map[string]port.Handler {
			return map[string]port.Handler{
				"/text": func(context.Context, raft.ServerID, []byte) ([]byte, error) {
					return nil, errors.New("the disk is full")
				},
				"/wordy": func(context.Context, raft.ServerID, []byte) ([]byte, error) {
					return nil, errors.New("too wordy " + strings.Repeat("x", 2*port.MaxBody))
				},
				"/stale": func(context.Context, raft.ServerID, []byte) ([]byte, error) { return nil, keyring.ErrUnknownKey },
				"/handing over": func(context.Context, raft.ServerID, []byte) ([]byte, error) {
					return nil, raft.ErrLeadershipTransferInProgress
				},
				"/long": func(context.Context, raft.ServerID, []byte) ([]byte, error) { return make([]byte, port.MaxBody+1), nil },
				"/fits": func(context.Context, raft.ServerID, []byte) ([]byte, error) { return make([]byte, port.MaxBody), nil },
				"/hangs": func(ctx context.Context, _ raft.ServerID, _ []byte) ([]byte, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				},
			}
		})
		h1 := hs.all["h1"]
		for path, want := range map[string]string{
			"/text": "the disk is full", "/wordy": "too wordy", "/stale": keyring.ErrUnknownKey.Error(), "/handing over": "not the leader", "/long": "the maximum is", "/fits": "", "/none": "no handler", "/hangs": "deadline",
		} {
			began := time.Now()
			_, err := h1.port.Request(t.Context(), "h2", path, nil)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", path, err, want)
			}
			if path == "/stale" && !errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("%s: %v is not the keyring's", path, err)
			}
			if path == "/handing over" && !errors.Is(err, keyring.ErrNotLeader) {
				t.Errorf("%s: %v is not the keyring's", path, err)
			}
			if took := time.Since(began); took > 11*time.Second {
				t.Errorf("%s took %v", path, took)
			}
		}
		if _, err := h1.port.Request(t.Context(), "h1", "/none", nil); err == nil {
			t.Error("on the server itself: a call that nobody answers")
		}
		if _, err := h1.port.Request(t.Context(), "h9", "/text", nil); err == nil || !strings.Contains(err.Error(), "not in the raft configuration") {
			t.Errorf("a server that is no member: %v", err)
		}
	})
}

// TestRequestBeforeOpenIsNotReady, and Handle after it is a mistake.
func TestRequestBeforeOpenIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 1)
		h := hs.all["h1"]
		hs.listen(h)
		if _, err := h.port.Request(t.Context(), "h1", "/any", nil); !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("before Open: %v", err)
		}
		hs.run(h, true)
		defer func() {
			if recover() == nil {
				t.Error("a handler is taken after Open")
			}
		}()
		h.port.Handle("/late", func(context.Context, raft.ServerID, []byte) ([]byte, error) { return nil, nil })
	})
}
