// Controlplane is a control plane on hashicorp/raft with a keyring: a store of secrets and an
// issuer of workload identities, on three servers.
//
//	controlplane init [-port 8001] [-servers 3] DIR       make certificates, KEKs and addresses
//	controlplane serve [-every 720h] [-rate 0] [-clicks] [-escrow RECIPIENT,...] [-identity FILE] [-token FILE] [-backups DIRECTORY -to RECIPIENT,...] DIR ID       run one of them: s1, s2, s3
//
//	controlplane [-server URL] put [-if VERSION] [-empty] PATH         store standard input
//	controlplane [-server URL] get [-stale] PATH       likewise
//	controlplane [-server URL] list [-stale] [PREFIX]       what the leader has; -stale: what that server has, which may be late
//	controlplane [-server URL] identity [-aud A,B] [-ttl 10m] WORKLOAD        print a token
//
//	controlplane recover [-force] DIR ID       makes a server the only one, when the majority is lost; none may run
//
// Operators have the commands of package admin: keys status, rotate, remove, adopt and rewrap; servers add, promote, demote,
// lead, remove, token, tokens and withdraw; backup, verify, restore ... DIR ID BACKUP, and inspect. controlplane -h lists all, and each has -h.
//
// URL is any server's, http://127.0.0.1:8001 if it is not given; HOST:PORT alone is http. There a page says whether
// all is well and which command helps if not, and shows keys and servers, with buttons that rotate and remove keys if
// the server runs with -clicks. -every is how often keys rotate,
// -rate how many secrets a second a full rotation may re-encrypt. With -escrow each key is wrapped to age
// recipients too; when DIR/ID.kek is lost, make another (head -c 32 /dev/urandom) and start once with
// their -identity. With -backups the leader writes a backup for the recipients -to into a directory that is there on all servers, once a
// day, and keeps the last 7. restore and recover refuse while another server answers, unless -force is set. A
// server's directory of key files is DIR/ID/keystore, and its KEK is DIR/ID.kek.
//
// For scripts, the exit status is that of admin.ExitStatus: 1 if it failed, 2 for wrong usage, 3 if what was looked at is not good.
//
// While the server that is asked hears from no leader, a command that needs one fails within half a minute, with status 1. It
// sends to keys status of the others, which may have a leader, and names recover, which is for when most of the servers are gone for
// good. keys status ends within 5 seconds, also when the server that is asked takes connections and hangs.
//
// It is made to be copied from. What a program needs to have a keyring is in store.go, its own FSM,
// around the Map of package records, with which full rotation and the removal of keys work;
// serve.go, a server from its configuration to its end; and operator.go, which has package admin serve the API and the page for operators.
// The rest is the program: api.go for users and workloads, requests.go what is taken of them, keks.go what wraps the keys, main.go and client.go the
// command line, terminal.go what a terminal may be sent, recover.go the day on which most servers are gone, setup.go what a first trial needs.
//
// The API has no passwords and listens on loopback only: anybody on the machine may do everything
// but what a workload's token narrows. A page of another origin gets nothing but the documents for relying parties.
// A workload's name has no slash. A parameter ?force=false is false, and one that the request does not take is an error. A service in the field has TLS and authentication there.
package main
