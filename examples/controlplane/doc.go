// Controlplane is a control plane on hashicorp/raft with a keyring: a store of secrets and an
// issuer of workload identities, on three servers.
//
//	controlplane init [-port 8001] [-servers 3] DIR       make certificates, KEKs and addresses
//	controlplane serve [-every 720h] [-rate 0] [-clicks] [-escrow RECIPIENT,...] [-identity FILE] [-token FILE] [-backups DIRECTORY -to RECIPIENT,...] DIR ID       run the server of that ID in DIR/cluster.json
//
//	controlplane [-server URL] put [-if VERSION] [-empty] PATH         store standard input
//	controlplane [-server URL] get [-stale] PATH       print it
//	controlplane [-server URL] list [-stale] [PREFIX]       list what the leader has; -stale: what that server has, which may be behind
//	controlplane [-server URL] identity [-aud A,B] [-ttl 10m] WORKLOAD        print a token
//
//	controlplane recover [-force] DIR ID       make a server the only one, when the majority is lost; no server may run
//
// Operators use the commands of package admin: keys status, rotate, remove, adopt and rewrap; servers add,
// promote, demote, lead, remove, token, tokens and withdraw; backup, verify, restore ... DIR ID BACKUP, and
// inspect. controlplane -h lists all of them, and each command has -h.
//
// URL is that of any server, by default http://127.0.0.1:8001; HOST:PORT alone means http. Its page says
// whether all is well and which command helps if not, and shows keys and servers. If the server runs with
// -clicks, the page has buttons that rotate and remove keys.
//
// The flags of serve: -every is how often keys rotate. -rate is how many secrets a full rotation may
// re-encrypt in a second. With -escrow each key is also wrapped to age recipients; if DIR/ID.kek is lost,
// make another one (head -c 32 /dev/urandom) and start the server once with the -identity of the escrow. With
// -backups the leader writes a backup for the recipients -to once a day into a directory that exists on all
// servers, and keeps the last 7.
//
// restore and recover fail while another server answers, unless -force is set. A server's directory of key
// files is DIR/ID/keystore, and its KEK is DIR/ID.kek.
//
// For scripts, the exit status is that of admin.ExitStatus: 1 for a failure, 2 for wrong usage, 3 if the
// thing that was checked is not good.
//
// If the server that is asked hears from no leader, a command that needs one fails within half a minute, with
// status 1. The error refers to keys status of the other servers, which may have a leader, and to recover,
// for when most of the servers are gone for good. keys status ends within 5 seconds, even if the server that
// is asked accepts connections and hangs.
//
// Copy from it. Three files are what a program needs for a keyring: store.go, its own FSM around the Map of
// package records, which makes full rotation and the removal of keys work; serve.go, a server from its
// configuration to its end; and operator.go, which lets package admin serve the API and the page for
// operators. The rest is the program: api.go for users and workloads, requests.go for checks of requests,
// keks.go for the KEKs, main.go and client.go for the command line, terminal.go for output to a terminal,
// recover.go for the day on which most servers are gone, and setup.go for a first trial.
//
// The API has no passwords and listens on loopback only: anyone on the machine may do everything, within the
// limits of a workload's token. A page of another origin gets only the documents for relying parties. A
// workload's name must not contain a slash. A parameter ?force=false is false, and a parameter that the
// request does not take is an error. A service in production has TLS and authentication.
package main
