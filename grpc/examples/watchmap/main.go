package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "watchmap:", err)
		os.Exit(1)
	}
}

// run is the program.
func run(ctx context.Context, args []string) error {
	cfg, args, err := parse(args)
	if err != nil {
		return err
	}
	if is, err := use(ctx, cfg, args); is {
		return err
	}
	if len(args) > 0 {
		return command(ctx, cfg, args)
	}
	d, err := openDisk(cfg)
	if err != nil {
		return err
	}
	defer d.log.Close()
	return serve(ctx, cfg, d)
}

// parse reads the flags, and returns the arguments after them.
func parse(args []string) (cfg config, rest []string, err error) {
	fs := flag.NewFlagSet("watchmap", flag.ContinueOnError)
	id := fs.String("id", "", "this server's `ID`, as in its certificate")
	fs.StringVar(&cfg.dir, "dir", "", "its `directory`, with tls.crt, tls.key, ca.crt and kek")
	fs.StringVar(&cfg.addr, "addr", "", "the `host:port` at which the other servers and users reach it")
	initial := fs.String("initial", "", "`servers` of a new cluster, as id@host:port,...")
	fs.IntVar(&cfg.rate, "rate", 0, "how many values to re-encrypt in a second at most; 0 is no limit")
	if err := fs.Parse(args); err != nil {
		return cfg, nil, err
	}
	cfg.id = raft.ServerID(*id)
	cfg.log = hclog.New(&hclog.LoggerOptions{Name: *id, Level: hclog.Info})
	for s := range strings.SplitSeq(*initial, ",") {
		if s == "" {
			continue
		}
		id, addr, ok := strings.Cut(s, "@")
		if !ok {
			return cfg, nil, fmt.Errorf("-initial: %q is not id@host:port", s)
		}
		cfg.initial = append(cfg.initial, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(addr)})
	}
	return cfg, fs.Args(), nil
}
