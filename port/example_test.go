package port_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// A server of a host that has a raft of its own. The others are started the same way, with their own IDs, addresses and
// certificates, and are named in the configuration that the cluster is bootstrapped with.
func Example() {
	ctx := context.Background()
	dir := exampleFiles("h1")[0] // tls.crt and tls.key of h1, and ca.crt
	defer os.RemoveAll(dir)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // or set Addr alone
	if err != nil {
		log.Fatal(err)
	}
	p, err := port.Listen(port.Config{
		ID: "h1", Cluster: "prod", Addr: ln.Addr().String(), Listener: ln,
		TLS: keyring.TLSFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()

	// The host's raft, as it is: only its FSM and its transport are the keyring's.
	conf, store, snapshots := raft.DefaultConfig(), raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	conf.LocalID, conf.LogLevel = "h1", "ERROR"
	keys := keyring.NewFSM()
	transport := p.RaftTransport(store, keys)
	first := raft.Configuration{Servers: []raft.Server{{ID: "h1", Address: transport.LocalAddr()}}}
	if err := raft.BootstrapCluster(conf, store, store, snapshots, transport, first); err != nil { // once
		log.Fatal(err)
	}
	r, err := raft.NewRaft(conf, keyring.Mux(keys, app{}), store, store, snapshots, transport)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { r.Shutdown().Error() }()

	k, err := p.Open(ctx, keyring.Config{
		Dir: filepath.Join(dir, "keystore"), Raft: r, FSM: keys, KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer k.Close()

	if err := k.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	sealed, err := k.Encrypt([]byte("secret"), nil) // on the leader
	if err != nil {
		log.Fatal(err)
	}
	plaintext, err := k.Decrypt(sealed, nil) // on every server
	fmt.Println(string(plaintext), err)
	// Output: secret <nil>
}

// A new server joins with a token that the leader has made for it. Join comes before raft is started.
func ExamplePort_Join() {
	ctx := context.Background()
	dirs := exampleFiles("h1", "h2")
	defer os.RemoveAll(dirs[0])
	defer os.RemoveAll(dirs[1])
	leader, addr, end := startFirst("h1", dirs[0])
	defer end()
	ciphertext, err := leader.Encrypt([]byte("secret"), nil)
	if err != nil {
		log.Fatal(err)
	}
	token, err := leader.MakeJoinToken(ctx, "h2", time.Hour) // a secret: it lets h2 join, and nobody else
	if err != nil {
		log.Fatal(err)
	}

	p, err := port.Listen(exampleConfig("h2", dirs[1])) // as for the first server
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	if err := p.Join(ctx, []string{addr}, token); err != nil { // only while raft's log is empty, and there is no snapshot
		log.Fatal(err)
	}
	conf, store, snapshots := exampleRaft("h2")
	fsm := keyring.NewFSM()
	r, err := raft.NewRaft(conf, fsm, store, store, snapshots, p.RaftTransport(store, fsm)) // no BootstrapCluster
	if err != nil {
		log.Fatal(err)
	}
	defer func() { r.Shutdown().Error() }()
	keys, err := p.Open(ctx, keyring.Config{
		Dir: filepath.Join(dirs[1], "keystore"), Raft: r, FSM: fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	if err := keys.WaitReady(ctx); err != nil { // it has fetched the active key
		log.Fatal(err)
	}
	plaintext, err := keys.Decrypt(ciphertext, nil)
	fmt.Printf("%s, %v\n", plaintext, err)
	// Output: secret, <nil>
}
