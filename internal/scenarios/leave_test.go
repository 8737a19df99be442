package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestHostsLeaderHandsOver to any voter and to one by name, and nobody else can have it do so.
func TestHostsLeaderHandsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader, ctx := keyringtest.Ready(t, c), t.Context()
		f := keyringtest.Follower(c)
		for name, transfer := range map[string]func(*keyring.Keyring) error{
			"TransferLeadership":   func(k *keyring.Keyring) error { return k.TransferLeadership(ctx) },
			"TransferLeadershipTo": func(k *keyring.Keyring) error { return k.TransferLeadershipTo(ctx, f.ID) },
		} {
			leads := keyring.NotLeaderError{}
			if err := transfer(f.Keyring); !errors.As(err, &leads) || leads.Leader != leader.ID {
				t.Errorf("%s on a follower: %v", name, err)
			}
		}
		if err := leader.Keyring.TransferLeadershipTo(ctx, leader.ID); err != nil || c.Leader() != leader {
			t.Errorf("to itself: %v", err)
		}
		if err := leader.Keyring.TransferLeadershipTo(ctx, "s9"); !errors.Is(err, keyring.ErrNotMember) {
			t.Errorf("to a server that is no member: %v", err)
		}
		if err := leader.Keyring.TransferLeadershipTo(ctx, ""); err == nil || !strings.Contains(err.Error(), "empty") {
			t.Errorf("to nobody: %v", err)
		}
		if err := leader.Keyring.TransferLeadershipTo(ctx, f.ID); err != nil || c.Leader() != f {
			t.Errorf("to %s: %v; %s leads", f.ID, err, c.Leader().ID)
		}
		if err := keyringtest.Ready(t, c).Keyring.TransferLeadership(ctx); err != nil || c.Leader() == f {
			t.Errorf("to any: %v; %s leads", err, c.Leader().ID)
		}
		leader = keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		if err := leader.Keyring.DemoteServer(ctx, otherThan(leader.ID, "s1")); err != nil {
			t.Fatal(err)
		}
		if err := leader.Keyring.TransferLeadershipTo(ctx, otherThan(leader.ID, "s1")); err == nil || !strings.Contains(err.Error(), "has no vote") {
			t.Errorf("to a server without a vote: %v", err)
		}
	})
}

// TestServersOfAHostLeaveByThemselves: a follower asks the leader, the leader hands over first, and none leaves that is needed.
func TestServersOfAHostLeaveByThemselves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 4, Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Info})})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		f := keyringtest.Follower(c)
		leave := func(s *keyringtest.Server) error {
			return within(t, time.Minute, func(ctx context.Context) error { return s.Keyring.Leave(keyring.WithActor(ctx, "ann")) })
		}
		heal := keyringtest.Refuse(c, "ask")
		if err := leave(f); !errors.Is(err, keyring.ErrNotDurable) || !strings.Contains(err.Error(), "the leader, "+string(leader.ID)+", says") {
			t.Errorf("while the others do not say what they hold: %v", err)
		}
		heal()
		wantSuffrage(t, leader, f.ID, raft.Voter, "refused")
		for range 2 {
			if err := leave(f); err != nil {
				t.Fatalf("a follower: %v", err)
			}
			if m, known := memberOf(leader, f.ID); known {
				t.Errorf("it is %v", m)
			}
		}
		if err := leave(leader); err != nil {
			t.Fatalf("the leader: %v", err)
		}
		next := c.Leader()
		if m, known := memberOf(next, leader.ID); known || next == leader {
			t.Errorf("the leader that was is %v: %t; %s leads", m, known, next.ID)
		}
		c.Close() // nothing is logged any more
		for _, s := range []*keyringtest.Server{f, leader} {
			if want := "removing a server: id=" + string(s.ID) + " forced=false by=ann"; !strings.Contains(log.String(), want) {
				t.Errorf("the log has no %q", want)
			}
		}
	})
}

// TestLeaveWhoseAnswerIsLostIsDone. One that no leader answers says so when its context ends, and one that the leader's build does
// not know says so at once.
func TestLeaveWhoseAnswerIsLostIsDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		f := keyringtest.Follower(c)
		heal := keyringtest.Refuse(c, "leave")
		err := within(t, time.Minute, f.Keyring.Leave)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no leader has answered") {
			t.Errorf("the leader is not reached: %v", err)
		}
		heal()
		for code, want := range map[string]string{"unsupported": "its build is older", "not-member": "<nil>"} {
			c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
				if e.Kind == "call" && strings.Contains(e.What, `"leave":{`) {
					return keyringtest.Reply{Data: fmt.Appendf(nil, `{"version":1,"error":{"code":%q}}`, code)}
				}
				return keyringtest.Reply{}
			})
			if err := within(t, time.Minute, f.Keyring.Leave); !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("the leader says %s: %v", code, err)
			}
		}
		lost := 0
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "called" && e.Server == f && strings.Contains(e.What, `"leave":{`) && lost == 0 {
				lost++
				return keyringtest.Reply{Err: errors.New("reset by peer")}
			}
			return keyringtest.Reply{}
		})
		if err := within(t, time.Minute, f.Keyring.Leave); err != nil || lost != 1 {
			t.Errorf("%d answers were lost: %v", lost, err)
		}
		if m, known := memberOf(leader, f.ID); known {
			t.Errorf("it is %v", m)
		}
	})
}
