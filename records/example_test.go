package records_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"

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

// A host whose FSM is a Map writes a record of two encrypted parts, and rotates fully.
func Example() {
	ctx := context.Background()
	keys := keyring.NewFSM()
	m := records.New(keys)
	n, end := startNode(ctx, keys, m, m)
	defer end()
	m.Connect(n.Keyring(), n.Apply)

	_, err := m.Put(ctx, records.Write{
		Name: "tls/web", Meta: []byte("expires in May"), Parts: [][]byte{[]byte("certificate"), []byte("private key")}, If: new(uint64(0)),
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = m.Put(ctx, records.Write{Name: "tls/web", If: new(uint64(0))}) // somebody else
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

// oldApp is a host that had passwords in the clear before it had a keyring: its old log has commands in JSON.
type oldApp struct{ *records.Map }

func (a oldApp) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return a.Map.Apply(l)
	}
	var old struct{ Name, Password string }
	if err := json.Unmarshal(l.Data, &old); err != nil {
		return err
	}
	return a.SetPlain(records.Record{Name: old.Name, Parts: [][]byte{[]byte(old.Password)}})
}

// The leader encrypts records in the clear once there is a key. The host makes no call for that.
func ExampleMap_SetPlain() {
	ctx := context.Background()
	keys := keyring.NewFSM()
	a := oldApp{records.New(keys)}
	n, end := startNode(ctx, keys, a, a)
	defer end()
	a.Connect(n.Keyring(), n.Apply)
	if _, err := n.Apply(ctx, []byte(`{"Name":"anna","Password":"hunter2"}`)); err != nil {
		log.Fatal(err)
	}
	for {
		changed := a.Changed()
		left, err := a.Count(ctx, keyring.KeyID{}) // Status has it too
		if err != nil {
			log.Fatal(err)
		}
		if left == 0 {
			break
		}
		<-changed
	}
	r, parts, err := a.Open("anna")
	fmt.Println(string(parts[0]), r.KeyID(0) == n.Keyring().Keys()[0].ID, err)
	// Output: hunter2 true <nil>
}
