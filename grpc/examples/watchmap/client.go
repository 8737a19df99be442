package main

// How users call a server, as the program's own commands do.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"

	"example.com/keyring/examples/watchmap/store"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// usersTLS is for both ends of the connections of users, who show a certificate of the CA.
func (c config) usersTLS() (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(c.path("tls.crt"), c.path("tls.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(c.path("ca.crt"))
	if err != nil {
		return nil, err
	}
	cas := x509.NewCertPool()
	if !cas.AppendCertsFromPEM(ca) {
		return nil, errors.New("ca.crt has no certificate")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{own}, RootCAs: cas, ClientCAs: cas, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13,
	}, nil
}

// client calls a server.
type client struct{ *grpc.ClientConn }

// dial returns a client of the server at an address, with the certificate in the directory of c.
func (c config) dial(at string) (client, error) {
	conf, err := c.usersTLS()
	if err != nil {
		return client{}, err
	}
	cc, err := grpc.NewClient(at, grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithDefaultCallOptions(grpc.CallContentSubtype("json")))
	return client{cc}, err
}

// call makes a call. Out is a pointer to what it is answered with.
func (c client) call(ctx context.Context, name string, request store.Command, out any) error {
	return c.Invoke(ctx, "/"+serviceName+"/"+name, request, out)
}

// watch tells of the writes that a watch has after a version, until it returns an error or told does.
func (c client) watch(ctx context.Context, name string, after uint64, told func([]store.Entry) error) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+serviceName+"/Watch")
	if err == nil {
		err = errors.Join(stream.SendMsg(store.Command{Key: name, Version: after}), stream.CloseSend())
	}
	for err == nil {
		var news []store.Entry
		if err = stream.RecvMsg(&news); err == nil {
			err = told(news)
		}
	}
	return err
}

// use runs a command of a user's, and prints what it returns. It reports whether there is such a command.
func use(ctx context.Context, cfg config, args []string) (is bool, err error) {
	request, call := store.Command{}, ""
	switch {
	case len(args) == 3 && args[0] == "put":
		call, request.Key, request.Value = "Put", args[1], []byte(args[2])
	case len(args) == 2 && args[0] == "get":
		call, request.Key = "Get", args[1]
	case len(args) == 2 && args[0] == "delete":
		call, request.Key = "Delete", args[1]
	case len(args) == 2 && args[0] == "list":
		call, request.Prefix = "List", args[1]
	case len(args) == 1 && args[0] == "leader":
		call = "Leader"
	case len(args) == 3 && args[0] == "watch":
		call, request = "SetWatch", store.Command{Op: "watch", Key: args[1], Prefix: args[2]}
	case len(args) == 2 && args[0] == "follow":
		request.Key = args[1]
	default:
		return false, nil
	}
	c, err := cfg.dial(cfg.addr)
	if err != nil {
		return true, err
	}
	defer c.Close()
	out := json.NewEncoder(os.Stdout)
	if call == "" {
		return true, c.watch(ctx, request.Key, 0, func(news []store.Entry) error { return out.Encode(news) })
	}
	var answer json.RawMessage
	if err := c.call(ctx, call, request, &answer); err != nil {
		return true, err
	}
	return true, out.Encode(answer)
}
