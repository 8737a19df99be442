package keyringgrpc_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc/test/bufconn"
)

// TestServersThatWereAddedGetTheirVotes from the leader, whenever something has changed, and after an error without a change.
func TestServersThatWereAddedGetTheirVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newVirtual(t).start("s1")
		var asked atomic.Int32
		var answer atomic.Pointer[error]
		answers := func(err error) { answer.Store(&err) }
		promote := func(context.Context) error { asked.Add(1); return *answer.Load() }
		expect := func(what string, want int32) {
			t.Helper()
			synctest.Wait()
			if got := asked.Load(); got != want {
				t.Errorf("%s: asked %d times, want %d", what, got, want)
			}
		}
		answers(errors.New("a server does not answer"))
		p.keys.change()
		expect("while another server leads", 0)
		p.keys.leads.Store(&promote)
		p.keys.change()
		expect("it leads", 1)
		p.keys.change()
		expect("a change, as a try makes one", 1)
		time.Sleep(keyringgrpc.RecheckEvery) // virtual
		expect("it has failed", 2)
		answers(nil)
		time.Sleep(keyringgrpc.RecheckEvery) // virtual
		expect("it has failed again", 3)
		time.Sleep(time.Hour) // virtual
		expect("all have their votes", 3)
		p.keys.change()
		expect("a change", 4)
		answers(keyring.ErrNotLeader)
		p.keys.change()
		expect("another server leads again", 5)
		p.keys.change()
		expect("and a change tells", 6)
		answers(keyring.ErrClosed)
		p.keys.change()
		expect("the keyring is closed", 7)
		p.keys.change()
		time.Sleep(time.Hour) // virtual
		expect("after that", 7)
	})
}

// TestRaftShutsDownWhileAServerHangs: raft would wait for its answer, or until it is dialled.
func TestRaftShutsDownWhileAServerHangs(t *testing.T) {
	for _, hangs := range []string{"when it is dialled", "in the handshake", "in an answer"} {
		t.Run(hangs, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVirtual(t, "s1")
				hang(v, hangs)
				p := v.ports["s1"]
				conf := raft.DefaultConfig()
				conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
				trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
					Stream: p.StreamLayer(), MaxPool: 3, Timeout: time.Minute, Logger: conf.Logger,
				})
				log, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
				must(raft.BootstrapCluster(conf, log, log, snapshots, trans, raft.Configuration{Servers: v.members()}))
				r, err := raft.NewRaft(conf, keyring.NewFSM(), log, log, snapshots, trans)
				must(err)
				p.Follow(r)
				time.Sleep(3 * time.Second) // virtual: it has asked for a vote
				begun := time.Now()
				if err := r.Shutdown().Error(); err != nil || time.Since(begun) > 0 {
					t.Errorf("after %v: %v", time.Since(begun), err)
				}
			})
		})
	}
}

// hang adds s2 to a virtual cluster, which hangs.
func hang(v *virtual, hangs string) {
	if hangs == "in an answer" {
		p := v.start("s2")
		go func() {
			for {
				if _, err := p.StreamLayer().Accept(); err != nil {
					return
				}
			}
		}()
		v.t.Cleanup(func() { p.StreamLayer().Close() })
		return
	}
	ln := bufconn.Listen(1 << 20)
	v.listeners["s2"] = ln
	v.set("s2", "s2:1")
	if hangs == "in the handshake" {
		go func() {
			for {
				if _, err := ln.Accept(); err != nil {
					return
				}
			}
		}()
		v.t.Cleanup(func() { ln.Close() })
	}
}
