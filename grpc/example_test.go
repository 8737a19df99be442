package keyringgrpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring"
	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// server is one server of a host, which has a service for clients: in place of yours, the health service.
type server struct {
	peers *keyringgrpc.Peers
	grpc  *grpc.Server
	raft  *raft.Raft
	keys  *keyring.Keyring
}

// start runs a server. First are the servers that the cluster begins with; without, this one is to be added by AddServer on
// the leader. After an error the process ends.
func start(ctx context.Context, id raft.ServerID, dir string, ln net.Listener, source func() (*tls.Config, error), first []raft.Server) (s *server, err error) {
	s = &server{}
	if s.peers, err = keyringgrpc.New(keyringgrpc.Config{
		ID: id, Cluster: "prod", Addr: ln.Addr().String(), TLS: source,
		Clients: source, // clients need no certificate
	}); err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(s.peers.ServerOptions()...)
	s.peers.Register(s.grpc)
	grpc_health_v1.RegisterHealthServer(s.grpc, health.NewServer())
	go s.grpc.Serve(ln)

	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
	store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore() // yours are on disk
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s.peers.StreamLayer(), MaxPool: 3, Timeout: 10 * time.Second, Logger: conf.Logger,
		MaxRPCsInFlight: 1, // no pipeline: a leader that is deposed can hang in it (hashicorp/raft issue 612)
	})
	if len(first) > 0 {
		err := raft.BootstrapCluster(conf, store, store, snaps, trans, raft.Configuration{Servers: first})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) { // which is that it has run before
			return nil, err
		}
	}
	fsm := keyring.NewFSM() // with an FSM of your own: keyring.Mux(fsm, yours) to raft
	if s.raft, err = raft.NewRaft(conf, fsm, store, store, snaps, trans); err != nil {
		return nil, err
	}
	s.keys, err = s.peers.Open(ctx, keyring.Config{
		Dir: filepath.Join(dir, "keystore"), Raft: s.raft, FSM: fsm,
		KEKs: []keyring.KEK{keyring.InlineKEK()}, // for the example: anyone with the files has the keys
	})
	return s, err
}

// close has an order: the keyring, raft, and then the port.
func (s *server) close() error {
	err := errors.Join(s.keys.Close(), s.raft.Shutdown().Error(), s.peers.Close())
	s.grpc.Stop()
	return err
}

// Three servers of a host, with raft, the keyring and clients on one port each. Copy start and close.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "keyring")
	must(err)
	defer os.RemoveAll(dir)

	ca := newCA() // of the cluster "prod"
	var first []raft.Server
	var ports []net.Listener
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(err)
		ports = append(ports, ln)
		first = append(first, raft.Server{ID: id, Address: raft.ServerAddress(ln.Addr().String())})
	}
	var servers []*server
	for i, s := range first {
		server, err := start(ctx, s.ID, filepath.Join(dir, string(s.ID)), ports[i], ca.server(string(s.ID)), first)
		if err != nil {
			log.Fatal(err)
		}
		defer server.close()
		servers = append(servers, server)
	}

	sealed, err := seal(ctx, servers, []byte("secret"))
	must(err)
	for i, s := range servers {
		plaintext, err := open(ctx, s, sealed)
		fmt.Printf("%s opens %q, %v\n", first[i].ID, plaintext, err)
	}

	// A client finds the host's service, and not the keyring's.
	client, err := grpc.NewClient(ports[0].Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: ca.pool()})))
	must(err)
	defer client.Close()
	answer, err := grpc_health_v1.NewHealthClient(client).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	fmt.Println(answer.GetStatus(), err)
	err = client.Invoke(ctx, "/"+keyringgrpc.ServiceName+"/Call", wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
	fmt.Println(err)

	// Output:
	// s1 opens "secret", <nil>
	// s2 opens "secret", <nil>
	// s3 opens "secret", <nil>
	// SERVING <nil>
	// rpc error: code = Unauthenticated desc = not a connection of a server of this cluster
}
