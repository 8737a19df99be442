package keyringgrpc_test

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"

	keyringgrpc "example.com/keyring/grpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// client connects as a client with these certificates does.
func (c *cluster) client(p *port, certificates source) *grpc.ClientConn {
	c.t.Helper()
	conf := &tls.Config{RootCAs: c.ca.pool()}
	if certificates != nil {
		own, err := certificates()
		must(err)
		conf.Certificates = own.Certificates
	}
	cc, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cc.Close() })
	return cc
}

func healthy(ctx context.Context, cc grpc.ClientConnInterface) error {
	_, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

// TestClientsShareThePort, with certificates or without, as the host wants; and none of them is answered by the keyring.
func TestClientsShareThePort(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	asked := func(auth tls.ClientAuthType) func(*keyringgrpc.Config) {
		return func(cfg *keyringgrpc.Config) {
			cfg.Clients = func() (*tls.Config, error) {
				conf, err := cfg.TLS()
				if err == nil {
					conf.ClientAuth = auth
				}
				return conf, err
			}
		}
	}
	anyone, verified := c.port("s1", withClients), c.port("s2", asked(tls.RequireAndVerifyClientCert))
	web, s2, foreign := c.ca.source("keyring://prod/client/web"), c.ca.server("s2"), newCA().server("s2")
	for name, tt := range map[string]struct {
		port    *port
		source  source
		refused bool
	}{
		"no certificate":                   {anyone, nil, false},
		"a client's":                       {anyone, web, false},
		"a server's":                       {anyone, s2, false},
		"no certificate, and one is asked": {verified, nil, true},
		"a foreign one is asked":           {verified, foreign, true},
		"a client's is asked":              {verified, web, false},
		"a server's is asked":              {verified, s2, false},
	} {
		cc := c.client(tt.port, tt.source)
		if err := healthy(t.Context(), cc); (err != nil) != tt.refused {
			t.Errorf("%s: the host's service: %v", name, err)
		}
		if tt.refused {
			continue
		}
		err := cc.Invoke(t.Context(), method, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: the keyring's service: %v", name, err)
		}
		tt.port.told.wait("it was not made for calls between servers")
	}
	if got, err := anyone.Call(t.Context(), "s2", nil); err != nil || string(got) != "s1: " {
		t.Errorf("beside them, a server: %q, %v", got, err)
	}
}

// TestClientsAreRefusedWhereNoneAreWanted, and where anybody's certificate would do.
func TestClientsAreRefusedWhereNoneAreWanted(t *testing.T) {
	c := newCluster(t)
	p1 := c.port("s1")
	if err := healthy(t.Context(), c.client(p1, c.ca.server("s2"))); err == nil {
		t.Error("a client is let in")
	}
	p1.told.wait("only servers may connect")
	own, err := c.ca.server("s1")()
	must(err)
	_, err = keyringgrpc.New(keyringgrpc.Config{
		ID: "s1", Cluster: "prod", Addr: "127.0.0.1:1", TLS: c.ca.server("s1"),
		Clients: func() (*tls.Config, error) {
			return &tls.Config{Certificates: own.Certificates, ClientAuth: tls.RequireAndVerifyClientCert}, nil
		},
	})
	if err == nil || !strings.Contains(err.Error(), "ClientCAs is required") {
		t.Errorf("the system's CAs vouch for clients: %v", err)
	}
}

// TestClientsHaveABoundOfTheirOwn, which holds up no server.
func TestClientsHaveABoundOfTheirOwn(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1 := c.port("s1", withClients, func(cfg *keyringgrpc.Config) { cfg.MaxClients = 2 })
	p2 := c.port("s2")
	var clients []*grpc.ClientConn
	for range 2 {
		cc := c.client(p1, nil)
		clients = append(clients, cc)
		if err := healthy(t.Context(), cc); err != nil {
			t.Fatal(err)
		}
	}
	if err := healthy(t.Context(), c.client(p1, nil)); err == nil {
		t.Error("one more than MaxClients is let in")
	}
	p1.told.wait("clients have 2 connections")
	if _, err := p2.Call(t.Context(), "s1", nil); err != nil {
		t.Errorf("a server: %v", err)
	}
	clients[0].Close()
	for { // until the server has seen that
		if err := healthy(t.Context(), c.client(p1, nil)); err == nil {
			break
		}
	}
}

// TestHostsServicesKnowMembers by PeerID, and call them with Conn.
func TestHostsServicesKnowMembers(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1", withClients), c.port("s2")
	if err := healthy(t.Context(), p2.Conn("s1")); err != nil {
		t.Errorf("a call: %v", err)
	}
	stream, err := grpc_health_v1.NewHealthClient(p2.Conn("s1")).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("a stream: %v", err)
	}
	if err := healthy(t.Context(), p2.Conn("s9")); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not in the raft") {
		t.Errorf("nobody: %v", err)
	}
	for name, tt := range map[string]struct {
		by   grpc.ClientConnInterface
		want codes.Code
	}{
		"a member": {p2.Conn("s1"), codes.OK},
		"a client": {c.client(p1, c.ca.server("s2")), codes.Unauthenticated},
	} {
		id, err := whoAsks(t.Context(), p1, tt.by)
		if status.Code(err) != tt.want || (id == "s2") != (err == nil) {
			t.Errorf("%s: %q, %v", name, id, err)
		}
	}
	c.remove("s2")
	if id, err := whoAsks(t.Context(), p1, p2.Conn("s1")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a server that was removed: %q, %v", id, err)
	}
}

// TestServicesForMembersAlone are named in ServerOptions: the calls and streams of others are refused.
func TestServicesForMembersAlone(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	c.onlyMembers = []string{"grpc.health.v1.Health"}
	p1, p2 := c.port("s1", withClients), c.port("s2")
	byAddress, err := grpc.NewClient(p1.addr, p2.DialOptions()...) // as another module does
	must(err)
	defer byAddress.Close()
	for name, tt := range map[string]struct {
		by   grpc.ClientConnInterface
		want codes.Code
	}{
		"a member":              {p2.Conn("s1"), codes.OK},
		"a member, by address":  {byAddress, codes.OK},
		"a client":              {c.client(p1, nil), codes.Unauthenticated},
		"a server, as a client": {c.client(p1, c.ca.server("s2")), codes.Unauthenticated},
	} {
		if err := healthy(t.Context(), tt.by); status.Code(err) != tt.want {
			t.Errorf("%s: a call: %v", name, err)
		}
		stream, err := grpc_health_v1.NewHealthClient(tt.by).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		must(err)
		if _, err := stream.Recv(); status.Code(err) != tt.want {
			t.Errorf("%s: a stream: %v", name, err)
		}
		if _, err := whoAsks(t.Context(), p1, tt.by); status.Code(err) != tt.want {
			t.Errorf("%s: another service, which looks by itself: %v", name, err)
		}
	}
	p1.told.wait("rejected a call")
	c.remove("s2")
	if err := healthy(t.Context(), byAddress); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a server that was removed: %v", err)
	}
	nobody, err := grpc.NewClient(p2.addr, p2.DialOptions()...)
	must(err)
	defer nobody.Close()
	if err := healthy(t.Context(), nobody); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not in the raft configuration") {
		t.Errorf("an address of no member: %v", err)
	}
}

// whoAsks is what a service at a port learns of the one that calls it.
func whoAsks(ctx context.Context, p *port, by grpc.ClientConnInterface) (string, error) {
	answer := new(wrapperspb.BytesValue)
	err := by.Invoke(ctx, "/test.Who/Asks", wrapperspb.Bytes(nil), answer)
	return string(answer.GetValue()), err
}

// registerWho has a port answer whoAsks.
func registerWho(p *port) {
	p.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Who", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Asks", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(new(wrapperspb.BytesValue)); err != nil {
				return nil, err
			}
			id, err := p.PeerID(ctx)
			return wrapperspb.Bytes([]byte(id)), err
		}}},
	}, p)
}

// TestServiceOnAnotherServerAnswersNobody: a grpc.Server that makes its own TLS, with the same certificates.
func TestServiceOnAnotherServerAnswersNobody(t *testing.T) {
	c := newCluster(t)
	p1 := c.port("s1")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	conf, err := c.ca.server("s1")()
	must(err)
	conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, c.ca.pool()
	other := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	p1.Register(other)
	go other.Serve(ln)
	defer other.Stop()
	cc := c.client(&port{addr: ln.Addr().String()}, c.ca.server("s1"))
	err = cc.Invoke(t.Context(), method, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
	if status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}
