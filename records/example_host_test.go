package records_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"example.com/keyring/records"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// visitors is a host with a state of its own, a counter, beside a Map.
type visitors struct {
	secrets *records.Map
	visits  atomic.Int64
}

func (v *visitors) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return v.secrets.Apply(l) // its answer is for Put
	}
	return v.visits.Add(1)
}

func (v *visitors) Snapshot() (raft.FSMSnapshot, error) {
	return visitorsSnapshot{v.secrets.View(), v.visits.Load()}, nil
}

type visitorsSnapshot struct {
	secrets records.View
	visits  int64
}

// Persist writes the Map's section first: what reads JSON reads too far.
func (s visitorsSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := s.secrets.WriteTo(sink)
	if err == nil {
		err = json.NewEncoder(sink).Encode(s.visits)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (visitorsSnapshot) Release() {}

func (v *visitors) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	if err := v.secrets.RestoreFrom(rc); err != nil {
		return err
	}
	var visits int64
	err := json.NewDecoder(rc).Decode(&visits)
	v.visits.Store(visits)
	return err
}

// newRaft is a raft of one server in memory. It stands for the host's own.
func newRaft(fsm raft.FSM) *raft.Raft {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	addr, transport := raft.NewInmemTransport("")
	servers := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: addr}}}
	if err := raft.BootstrapCluster(conf, store, store, snapshots, transport, servers); err != nil {
		log.Fatal(err)
	}
	r, err := raft.NewRaft(conf, fsm, store, store, snapshots, transport)
	if err != nil {
		log.Fatal(err)
	}
	return r
}

// A host with a raft and an FSM of its own has secrets in a Map beside its other state.
func Example_host() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "records")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	keys := keyring.NewFSM()
	app := &visitors{secrets: records.New(keys)}
	r := newRaft(keyring.Mux(keys, app))
	k, err := keyring.Open(ctx, keyring.Config{
		Dir: dir, ID: "s1", Raft: r, FSM: keys, KEKs: []keyring.KEK{keyring.InlineKEK()}, Data: app.secrets,
	})
	if err != nil {
		log.Fatal(err)
	}
	app.secrets.Connect(k, records.Through(r))

	if err := k.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	if _, err := app.secrets.Put(ctx, records.Write{Name: "smtp", Parts: [][]byte{[]byte("hunter2")}}); err != nil {
		log.Fatal(err)
	}
	_, parts, err := app.secrets.Open("smtp")
	visit := r.Apply(nil, time.Second)
	fmt.Println(string(parts[0]), err, visit.Error(), visit.Response())
	if err := errors.Join(k.Close(), r.Shutdown().Error()); err != nil {
		log.Fatal(err)
	}
	// Output: hunter2 <nil> <nil> 1
}
