package port

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestWhoseIDIsInUse by what answers at the member's address.
func TestWhoseIDIsInUse(t *testing.T) {
	member := raft.Server{ID: "s1", Address: "a:1"}
	for name, tt := range map[string]struct {
		a    HelloAnswer
		err  error
		want bool
	}{
		"another server":          {HelloAnswer{Bootstrapped: true, Addr: "a:1"}, nil, true},
		"one that starts":         {HelloAnswer{}, &peer.Refusal{Code: peer.NotReady}, true},
		"the one that asks":       {HelloAnswer{Bootstrapped: true, Addr: "b:1"}, nil, false},
		"one without a log":       {HelloAnswer{Addr: "a:1"}, nil, false},
		"nobody":                  {HelloAnswer{}, errors.New("connection refused"), false},
		"one with another server": {HelloAnswer{}, errors.New("its certificate is that of s2"), false},
	} {
		if err := idInUse(member, "b:1", tt.a, tt.err); errors.Is(err, ErrIDInUse) != tt.want || (err != nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAClaimStandsUntilItIsMadeNoMore, or until the server that has made it has the place.
func TestAClaimStandsUntilItIsMadeNoMore(t *testing.T) {
	refused := fmt.Errorf("x: %w", ErrIDInUse)
	a, b := Claim{"s1", "a:1", "b:1"}, Claim{"s2", "c:1", "d:1"}
	var cs claims
	now := mono.Now()
	want := func(what string, all ...Claim) {
		t.Helper()
		if got := cs.standing(now); !slices.Equal(got, all) {
			t.Errorf("%s: %v, want %v", what, got, all)
		}
	}
	step := func(c Claim, answer error, changed bool) {
		t.Helper()
		if got := cs.note(now, c, answer); got != changed {
			t.Errorf("%v, %v: changed: %t", c, answer, got)
		}
	}
	step(a, nil, false)
	step(a, errors.New("another leader"), false)
	want("nobody was refused")
	step(a, refused, true)
	now = now.Add(time.Minute)
	step(a, refused, false)
	step(b, refused, true)
	step(b, errors.New("another leader"), false)
	want("both", a, b)
	now = now.Add(claimLasts - time.Second)
	step(a, refused, false)
	now = now.Add(time.Second)
	want("s2 asks no more", a)
	a.Answers, a.Claims = a.Claims, a.Answers
	step(a, refused, true)
	want("they have changed places", a)
	step(Claim{"s1", "b:1", "b:1"}, nil, false)
	want("the member has said where it is", a)
	step(a, nil, true)
	want("it has its place")
}
