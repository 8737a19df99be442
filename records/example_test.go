package records_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// startNode starts a server alone whose raft has an App, in a directory of its own.
func startNode(ctx context.Context, keys *keyring.FSM, app raft.FSM, data keyring.SealedData) (*node.Node, func()) {
	dir, err := os.MkdirTemp("", "records")
	if err != nil {
		log.Fatal(err)
	}
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, App: app, Keys: keys, Data: data})
	if err != nil {
		log.Fatal(err)
	}
	if err := n.Keyring().WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	return n, func() {
		n.Close()
		os.RemoveAll(dir)
	}
}

// A host whose FSM is a Map writes a record of two sealed parts, and rotates fully.
func Example() {
	ctx := context.Background()
	keys := keyring.NewFSM()
	m := records.New(keys)
	n, end := startNode(ctx, keys, m, m)
	defer end()
	m.Connect(n.Keyring(), n.Apply)

	none := uint64(0)
	_, err := m.Put(ctx, records.Write{
		Name: "tls/web", Meta: []byte("expires in May"), Parts: [][]byte{[]byte("certificate"), []byte("private key")}, If: &none,
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = m.Put(ctx, records.Write{Name: "tls/web", If: &none}) // somebody else
	fmt.Println(errors.Is(err, records.ErrVersion))

	old := n.Keyring().Keys()[0].ID
	if _, err := n.Rotate(ctx, keyring.RotateOptions{Full: true}); err != nil {
		log.Fatal(err)
	}
	if err := n.Keyring().Remove(ctx, old, keyring.RemoveOptions{Now: true}); err != nil { // waits until all has moved
		log.Fatal(err)
	}
	r, parts, err := m.Open("tls/web")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, %s: %s, %s; moved: %t\n", r.Name, r.Meta, parts[0], parts[1], r.KeyID(0) != old)
	// Output:
	// true
	// tls/web, expires in May: certificate, private key; moved: true
}

// app is a host with a state of its own, a counter, beside a Map. Before it had a keyring, its passwords were in the clear:
// the Map has them now.
type app struct {
	*records.Map
	visits int
}

// command is what its log has beside the commands of the Map. Password is of before.
type command struct {
	Visit          bool
	Name, Password string
}

func (a *app) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return a.Map.Apply(l)
	}
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return err
	}
	if c.Visit {
		a.visits++
		return a.visits
	}
	return a.SetPlain(records.Record{Name: c.Name, Parts: [][]byte{[]byte(c.Password)}})
}

func (a *app) Snapshot() (raft.FSMSnapshot, error) {
	if _, err := a.Map.Snapshot(); err != nil {
		return nil, err
	}
	return &appSnapshot{a.visits, a.View()}, nil
}

type appSnapshot struct {
	visits  int
	records records.View
}

func (s *appSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := fmt.Fprintln(sink, s.visits)
	if err == nil {
		_, err = s.records.WriteTo(sink)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (*appSnapshot) Release() {}

func (a *app) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	in := bufio.NewReader(rc)
	var visits int
	if _, err := fmt.Fscanln(in, &visits); err != nil {
		return err
	}
	if err := a.RestoreFrom(in); err != nil {
		return err
	}
	a.visits = visits
	return nil
}

// A host with a state of its own hands on the commands that are the Map's. What it had in the clear is sealed once there is
// a key.
func ExampleMap_SealPlain() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	keys := keyring.NewFSM()
	a := &app{Map: records.New(keys)}
	n, end := startNode(ctx, keys, a, a)
	defer end()
	a.Connect(n.Keyring(), n.Apply)
	for _, c := range []string{`{"Visit":true}`, `{"Name":"anna","Password":"hunter2"}`, `{"Name":"bert","Password":"secret"}`} {
		if _, err := n.Apply(ctx, []byte(c)); err != nil {
			log.Fatal(err)
		}
	}
	inTheClear := keyring.KeyID{}
	before, _ := a.Count(ctx, inTheClear)
	sealed, err := a.SealPlain(ctx) // on the leader, after each change of it until none is left
	if err != nil {
		log.Fatal(err)
	}
	after, _ := a.Count(ctx, inTheClear)
	_, parts, err := a.Open("anna")
	fmt.Println(before, sealed, after, string(parts[0]), err)
	// Output: 2 2 0 hunter2 <nil>
}
